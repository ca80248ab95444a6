"""`mlxmtp report`: measure this machine with a model, and write one file to share."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import sys
from pathlib import Path

from mlxmtp import machine
from mlxmtp.cli import options
from mlxmtp.files import write_whole
from mlxmtp.terminal import say

REPORT, PAGE = "mlxmtp-report.json", "mlxmtp-report.html"
"""Names of the files."""


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "report",
        help="measure this machine with a model, in one file to share",
        description="Run the doctor, products of few rows, and benchmarks of depths, contexts, the model's own\n"
        "sampling and the identities; write one JSON file and one page. No path, user or host is in them.\n"
        "The same command run again goes on where it stopped.",
        epilog="Example:\n  mlxmtp report --model ./Qwen3.5-4B",
    )
    add = command.add_argument
    add("--model", metavar="PATH|REPO", default="demo", help="a model folder or a Hugging Face repo (default: demo)")
    add("--head", metavar="PATH|REPO", help="take the MTP head from here")
    options.add_device(add)
    add("--out", metavar="FOLDER", type=Path, help="measurements and report (default: mlxmtp-report/MODEL)")
    add("--quick", action="store_true", help="few prompts and short contexts: minutes, and rougher figures")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Measure the parts that are missing, write the report, and return the exit code."""
    from mlxmtp.checkpoints import open_checkpoint

    checkpoint = open_checkpoint(arguments.model)
    machine.import_backend()
    from mlxmtp.bench import machine_report
    from mlxmtp.bench.products import few_row_products
    from mlxmtp.engine.store import own_kernels

    name = machine_report.description(checkpoint)
    folder = arguments.out or Path("mlxmtp-report") / re.sub(r"[^\w.-]+", "-", name)
    loading = [f"--{name}={value}" for name in ("model", "head", "device") if (value := getattr(arguments, name))]
    wanted = machine_report.parts(folder, loading, quick=arguments.quick)
    found: dict[str, machine_report.Row] = {}

    def show(number: int, part: machine_report.Part) -> None:
        say(f"part {number} of {len(wanted)}: mlxmtp {shlex.join(part.command)}", out=sys.stderr)

    try:
        found.update(machine_report.measured(folder, wanted, show))
    except KeyboardInterrupt:
        say(f"mlxmtp: what is measured is kept in {folder}; the same command goes on from there", out=sys.stderr)
        raise
    products = few_row_products(machine_report.side_of(checkpoint), own_kernels())
    names = machine_report.PrivateNames.of(folder, checkpoint.folder, *_local(arguments.model, arguments.head))
    report = machine_report.report(name, machine.hardware() | machine.backend(), found, products, names)
    write_whole(folder / REPORT, json.dumps(report, ensure_ascii=False, indent=1, default=str) + "\n")
    titles = {part.name: part.title for part in wanted}
    write_whole(folder / PAGE, machine_report.as_html(report, titles))
    failed = [name for name, result in found.items() if result.get("failed") or result.get("error")]
    if failed:
        say(f"mlxmtp: failed: {', '.join(failed)}; the same command tries them again", out=sys.stderr)
    say(f"{folder / REPORT}\n{folder / PAGE}")
    return 1 if failed else 0


def _local(*names: str | None) -> list[str]:
    """Return the names that are paths of this machine, and not those of the demo or of a Hub repo."""
    return [name for name in names if name and os.path.exists(os.path.expanduser(name))]
