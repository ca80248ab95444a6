"""`mlxmtp bench`: measure MTP against mlx-lm's plain decoding."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlxmtp
from mlxmtp.cli import options
from mlxmtp.cli.progress import LoadProgress, Progress
from mlxmtp.cli.statistics import warn
from mlxmtp.engine.request import recommended_in_words
from mlxmtp.terminal import say

if TYPE_CHECKING:
    from mlxmtp import Engine
    from mlxmtp.bench.plan import BenchPlan, BenchSettings
    from mlxmtp.bench.records import Records

BAR = 20
"""Width of the progress bar, in characters."""


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "bench",
        help="measure what MTP brings on this machine",
        description="Run mlx-lm's plain decoding, ours, fixed depths and the automatic one in turn, behind prompts of\n"
        "several kinds and long contexts; price passes and drafts; write a table, JSON and a page with plots.\n"
        "The same command run again goes on where it stopped.",
        epilog="Example:\n  mlxmtp bench --model ./Qwen3.5-4B --workload code --workload math --depths 1 2 3",
    )
    add = command.add_argument
    add("--model", metavar="PATH|REPO", help="a model folder or a Hugging Face repo (default: the bundled demo)")
    add("--head", metavar="PATH|REPO", help="take the MTP head from here")
    add("--no-mtp", action="store_true", help="measure plain decoding only")
    options.add_device(add)
    options.add_identity(add)
    options.add_draft_vocab(add)
    out = "measurements and report (default: mlxmtp-bench/MODEL-...; of a comparison: none)"
    add("--out", metavar="FOLDER", type=Path, help=out)
    add("--json", action="store_true", help="print the report as JSON, not as a table")
    two = ("A", "B")
    add("--compare", metavar=two, type=Path, nargs=2, help="show how two reports differ; measures nothing")

    what = command.add_argument_group("what is measured")
    add = what.add_argument
    add("--prompts", metavar="FILE", type=Path, help="JSON lines with `workload` and `turns` (default: ours)")
    add("--workload", metavar="NAME", action="append", default=[], help="only this one; may be repeated")
    positive = options.at_least(1)
    add("--limit", metavar="N", type=positive, default=2, help="prompts of a workload (default: 2)")
    add("--tokens", metavar="N", type=options.at_least(8), default=128, help="of each run (default: 128)")
    add("--repeats", metavar="N", type=positive, default=3, help="of each arm at each prompt (default: 3)")
    depths = "fixed drafts a round (default: 1 2 3 4; without a K, none)"
    add("--depths", metavar="K", type=options.fixed_depth, nargs="*", default=[1, 2, 3, 4], help=depths)
    temps = "temperatures of the workloads (default: 0, and as the model recommends, else 0.7)"
    add("--temps", metavar="T", type=options.number, nargs="+", help=temps)
    options.add_filters(add)
    modes = ("token", "block", "seeded")
    add("--verify", choices=modes, default="block", help="above temperature 0 (default: block)")
    contexts = "lengths, as 4096 or 4k (default: 1k to 32k, those that fit; without an N, none)"
    add("--contexts", metavar="N", type=options.tokens, nargs="*", help=contexts)
    synthetic = "let each draft stand with probability A: prices models with random weights"
    add("--synthetic-acceptance", metavar="A", type=options.number, help=synthetic)
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    if arguments.compare:
        return compare(arguments)
    from mlxmtp.bench import run as bench
    from mlxmtp.bench.compare import REPORT
    from mlxmtp.bench.plan import make_plan
    from mlxmtp.bench.records import Records
    from mlxmtp.bench.workloads import load_prompts, select

    settings_of(arguments, {}).checked()  # before a model is loaded
    prompts = select(load_prompts(arguments.prompts), arguments.workload, arguments.limit)
    with LoadProgress(sys.stderr) as loading:
        engine = mlxmtp.load(
            arguments.model, identity=arguments.identity, on_check=loading.update, **options.head(arguments)
        )
        if engine.head:
            engine.guarantee  # noqa: B018 - measured now, not within a measurement
    plan = make_plan(engine, settings_of(arguments, recommended(engine, arguments)), prompts)
    for note in plan.notes:
        warn(note)
    folder = arguments.out or bench.default_folder(plan)
    with Records(folder, plan.head) as records:
        try:
            with BenchProgress() as progress:
                bench.measure(engine, plan, records, progress.update, progress.show_step)
        except BaseException:
            keep_partial(plan, records, folder)
            raise
        summary = report_of(plan, records)
    try:
        say(json.dumps(summary, ensure_ascii=False) if arguments.json else summary_text(summary))
    finally:  # even if standard output was closed
        bench.write_report(folder, summary)
    say(f"report: {folder / bench.PAGE}, {folder / REPORT}", out=sys.stderr)
    return 0


def recommended(engine: Engine, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the temperature and the filters that the model's files recommend; say which of them are used."""
    from mlxmtp.bench.plan import FILTERS
    from mlxmtp.engine.recommended import recommended_sampling

    fields = recommended_sampling(engine.path, warn)
    fields = {name: value for name, value in fields.items() if name in ("temperature", *FILTERS)}
    settings = settings_of(arguments, fields)
    chosen = options.filters(arguments) | ({"temperature": max(settings.temperatures)} if arguments.temps else {})
    if any(settings.temperatures) and (words := recommended_in_words(fields, chosen)):
        say(f"mlxmtp: sampling as the model recommends: {words}", out=sys.stderr)
    return fields


def settings_of(arguments: argparse.Namespace, recommended: dict[str, Any]) -> BenchSettings:
    """Return the benchmark's settings. `recommended` holds where the command line leaves a field of sampling out."""
    from mlxmtp.bench.plan import CONTEXTS, FILTERS, BenchSettings

    synthetic = arguments.synthetic_acceptance
    default = (0.0,) if synthetic is not None else (0.0, recommended.get("temperature", 0.7))
    temperatures = tuple(dict.fromkeys(arguments.temps or default))
    filters = {name: recommended[name] for name in FILTERS if name in recommended} if any(temperatures) else {}
    return BenchSettings(
        depths=tuple(
            sorted({depth for depth in arguments.depths if depth})
        ),  # depth 0 is the arm "plain", always measured
        temperatures=temperatures,
        contexts=CONTEXTS if arguments.contexts is None else tuple(sorted(set(arguments.contexts))),
        tokens=arguments.tokens,
        repeats=arguments.repeats,
        verify=arguments.verify,
        acceptance=synthetic,
        **filters | options.filters(arguments),
    )


def report_of(plan: BenchPlan, records: Records) -> dict[str, object]:
    """Return the report of the records, with this command line."""
    from mlxmtp.bench import run as bench

    return bench.report(plan, records, [shlex.quote(word) for word in ("mlxmtp", *sys.argv[1:])])


def keep_partial(plan: BenchPlan, records: Records, folder: Path) -> None:
    """Write the report of a benchmark that was stopped, and say how to go on."""
    from mlxmtp.bench import run as bench

    try:
        bench.write_report(folder, report_of(plan, records))
    except OSError as error:
        warn(f"the report was not written: {error}")
    done = f"{len(records.done)} of {len(plan.units)} measurements are kept in {folder}"
    say(f"mlxmtp: {done}; the same command goes on from there", out=sys.stderr)


def summary_text(summary: dict[str, object]) -> str:
    """Return the report as text."""
    from mlxmtp.bench import table

    return table.as_text(summary)


def compare(arguments: argparse.Namespace) -> int:
    """Print the comparison of two reports, and return the exit code."""
    from mlxmtp.bench import compare as reports
    from mlxmtp.bench import run as bench

    comparison = reports.compare(*map(reports.load_report, arguments.compare))
    if arguments.out:
        written = bench.write_comparison(arguments.out, comparison)
        say(f"report: {', '.join(map(str, written))}", out=sys.stderr)
    say(json.dumps(comparison, ensure_ascii=False) if arguments.json else reports.as_text(comparison))
    return 0


class BenchProgress(Progress):
    """Shows a bar of the units done, the time that is left at this pace, and the present step."""

    def __init__(self) -> None:
        super().__init__(sys.stderr, "Measuring", self._line)
        self._step = ""
        self._started: tuple[int, float] | None = None  # units done, clock

    def show_step(self, step: str) -> None:
        """Show the step that begins now."""
        self._step = step
        if self._done:
            super().update(*self._done)

    def update(self, done: int, total: int) -> None:
        if self._started is None:
            self._started = done, time.monotonic()
        super().update(done, total)

    def _line(self, done: int, total: int) -> str:
        full = BAR * done // max(1, total)
        line = f"[{'#' * full}{'.' * (BAR - full)}] {done} of {total}"
        assert self._started
        measured, seconds = done - self._started[0], time.monotonic() - self._started[1]
        if measured:
            line += f", {duration(seconds / measured * (total - done))} left"
        return f"{line}; {self._step}" if self._step else line


def duration(seconds: float) -> str:
    """Return a duration in words, rounded."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
