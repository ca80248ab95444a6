"""`mlxmtp inspect`: describe a model and its head, and say what mlxmtp does with them."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxmtp.cli import options
from mlxmtp.errors import HeadError, OptionError, PromptError
from mlxmtp.terminal import say
from mlxmtp.units import size

if TYPE_CHECKING:
    from mlxmtp import Engine
    from mlxmtp.conversion.reports import CheckpointReport, HeadReport, Unreadable
    from mlxmtp.conversion.weights import Weights
    from mlxmtp.engine.conventions import ConventionTrial
    from mlxmtp.heads import SelfCheck

WHERE = {"folder": "", "cache": ", in the Hub cache", "hub": ", on the Hub, not downloaded"}
VERDICTS = {"speculates": "speculates", "plain": "decodes plainly", "head": "takes its head", "refused": "refuses it"}


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "inspect",
        help="say what a model is, which head it has, and what is done with it",
        description="Describe a model folder, a GGUF file or a Hugging Face repo from its headers; of a repo that is\n"
        "not downloaded, no weights are read. Without a name: every model in the local Hub cache.",
        epilog="Example:\n  mlxmtp inspect Qwen/Qwen3.6-27B",
    )
    command.add_argument(
        "model", metavar="PATH|REPO", nargs="?", help="a model folder, a GGUF file, or a Hugging Face repo"
    )
    command.add_argument("--json", action="store_true", help="print JSON")
    check = "try the head on a short text: loads the model, and downloads a repo that is not there"
    command.add_argument("--check", action="store_true", help=check)
    conventions = "try every way to read the head on which references disagree, and say which drafts best"
    command.add_argument("--try-head", action="store_true", help=conventions)
    command.add_argument("--text", metavar="FILE", type=Path, help="the text to try it on (default: a built-in one)")
    command.add_argument("--head", metavar="PATH|REPO", help="the head to try (default: the model's own)")
    options.add_device(command.add_argument)
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the description of a model, and return the exit code."""
    tries = arguments.check or arguments.try_head
    given = arguments.head is not None
    if not tries and (arguments.text or given or arguments.device):
        raise OptionError("--text, --head and --device are for trying a head; add --check or --try-head")
    if arguments.model is None:
        if tries:
            raise OptionError("--check and --try-head load a model; name the one to try")
        return list_cache(as_json=arguments.json)
    from mlxmtp.conversion.inspect import inspect

    report = inspect(arguments.model)
    if arguments.json:
        say(
            json.dumps(
                report.as_json() | (tries_as_json(arguments, report.speculates or given) if tries else {}), indent=2
            )
        )
        return 0
    say(as_text(report))
    if tries and not (report.speculates or given):
        say(row("check", "there is no head to try"))
    elif tries:
        show_tries(arguments)
    return 0


def list_cache(*, as_json: bool) -> int:
    """Print the models of the local Hub cache, and return the exit code."""
    from mlxmtp.checkpoints.hub import hub_cache
    from mlxmtp.conversion.inspect import inspect_cache

    models = inspect_cache()
    if as_json:
        say(json.dumps([one.as_json() for one in models], indent=2))
    elif models:
        say(table([line(one) for one in models]))
    else:
        say(f"no models in the local Hub cache, {hub_cache()}")
    return 0


def checked(model: str) -> SelfCheck:
    """Load a model, and return its head's self-check on a short text."""
    return check(*head_and_text(model, None, None))


def check(engine: Engine, tokens: list[int]) -> SelfCheck:
    """Return the self-check of the head: its drafts against the trunk's tokens."""
    from mlxmtp.heads import self_check

    assert engine.mtp is not None
    return self_check(engine.target, engine.mtp, tokens)


def head_and_text(model: str, head: str | None, file: Path | None) -> tuple[Engine, list[int]]:
    """Return a model with its head, and the token ids to try the head on.

    Args:
        file: a text file. None: the built-in text.

    Raises:
        HeadError: the model has no head.
        PromptError: the file cannot be read.
    """
    import mlxmtp
    from mlxmtp.engine.prompt import encode
    from mlxmtp.heads.check import TEXT

    try:
        text = file.read_text(encoding="utf-8") if file else TEXT
    except OSError as error:
        raise PromptError(f"{file}: cannot be read ({error.strerror})") from error
    except UnicodeError as error:
        raise PromptError(f"{file}: not UTF-8 text ({error}); convert it first") from error
    engine = mlxmtp.load(model, head=head)
    if engine.mtp is None:
        raise HeadError(f"{model}: no head to try: {engine.plain_because}")
    return engine, encode(engine.tokenizer, text, raw=True)


def tries_as_json(arguments: argparse.Namespace, has_head: bool) -> dict[str, Any]:
    """Return the fields that `--check` and `--try-head` add to the JSON. Without a head they are null."""
    from mlxmtp.engine.conventions import try_conventions

    if not has_head:
        asked = {"check": arguments.check, "readings": arguments.try_head}
        return {name: None for name, wanted in asked.items() if wanted}
    engine, tokens = head_and_text(arguments.model, arguments.head, arguments.text)
    fields: dict[str, Any] = {"check": asdict(check(engine, tokens))} if arguments.check else {}
    if arguments.try_head:
        fields["readings"] = [one.to_dict() for one in try_conventions(engine, tokens)]
    return fields


def show_tries(arguments: argparse.Namespace) -> None:
    """Print the results of `--check` and `--try-head`."""
    from mlxmtp.engine.conventions import try_conventions

    engine, tokens = head_and_text(arguments.model, arguments.head, arguments.text)
    if arguments.check:
        say(row("check", outcome(check(engine, tokens))))
    if arguments.try_head:
        tries = []
        for one in try_conventions(engine, tokens):
            tries.append(one)
            say(row("" if len(tries) > 1 else "read", convention_line(one)))
        say(row("best", best_convention(tries)))


def convention_line(one: ConventionTrial) -> str:
    """Return the result for one convention as a line."""
    shares = ", ".join(f"{share:.0%}" for share in one.acceptance)
    named = choices(one) + (" (default)" if one.default else "")
    a_round = f"{one.tokens_per_round:.2f} ± {one.standard_error:.2f} tokens a round"
    return f"{named}: {a_round}; drafts accepted at depth 1, 2, 3: {shares}"


def choices(one: ConventionTrial) -> str:
    """Return the choices of a convention in words."""
    return ", ".join(f"{name} {value}" for name, value in one.convention.items())


def best_convention(tries: list[ConventionTrial]) -> str:
    """Return which convention drafts best, or that none is clearly better than the default."""
    default = next(one for one in tries if one.default)
    best = max(tries, key=lambda one: one.tokens_per_round)
    if not best.clearly_beats(default):
        rounds = min(one.rounds for one in tries)
        return f"none is clearly better than the default, over {rounds} rounds of each"
    return f"{choices(best)}; please report it with this table: the default of this family should change"


def outcome(check: SelfCheck) -> str:
    """Return the result of a self-check in words."""
    if check.warning:
        return f"warning: {check.warning}"
    return f"{check.acceptance:.0%} of the head's drafts taken on a short text"


def as_text(report: CheckpointReport) -> str:
    """Return the description of a model as lines."""
    sizes = {"hidden": report.hidden_size, "experts": report.experts, "vocabulary": report.vocab_size,
             "context": report.context}  # fmt: skip
    shape = [f"{report.layers} layers"] + [f"{name} {value}" for name, value in sizes.items() if value]
    rows = {
        "model": report.name + WHERE[report.where],
        "commit": report.revision,
        "type": report.model_type + (f", {report.format} layout" if report.format else ""),
        "size": ", ".join(shape) if report.layers else "",
        "trunk": weights(report.trunk) if report.trunk.files else "none",
        "head": head(report.head) if report.head else "none",
        "mlxmtp": f"{VERDICTS[report.support]}: {report.because}",
    }
    return "\n".join(row(name, value) for name, value in rows.items() if value)


def row(name: str, value: str) -> str:
    """Return a line with its name."""
    return f"{name:8}{value}"


def weights(one: Weights) -> str:
    """Return the size, files and formats of weights."""
    where = one.files[0] if len(one.files) == 1 else f"{len(one.files)} files"
    formats = [one.quantization, f"the rest {one.dtype}" if one.quantization and one.dtype else one.dtype]
    return "; ".join([f"{size(one.nbytes)} in {where}", *(name for name in formats if name)])


def head(report: HeadReport) -> str:
    """Return the description of a head as a line."""
    layers = f", {report.layers} layer{'s' if report.layers > 1 else ''}" if report.layers else ""
    facts = [weights(report.weights), f"norms {report.norms or 'not read'}"]
    source = [f"from {report.source}"] if report.source else []
    return "; ".join([f"{report.family or 'of an unknown kind'}{layers}, {report.place}", *facts, *source])


def line(report: CheckpointReport | Unreadable) -> tuple[str, str, str, str]:
    """Return a model of the cache as name, type, size and what mlxmtp does with it."""
    from mlxmtp.conversion.reports import Unreadable

    if isinstance(report, Unreadable):
        return report.name, "", "", f"unreadable: {report.error}"
    total = report.trunk.nbytes + (report.head.weights.nbytes if report.head else 0)
    support = VERDICTS[report.support] + ("" if report.speculates else f": {report.because}")
    return report.name, report.model_type, size(total), support


def table(lines: list[tuple[str, str, str, str]]) -> str:
    """Return the models of the cache in columns."""
    name, kind, total = (max(len(line[i]) for line in lines) for i in range(3))
    return "\n".join(f"{one[0]:{name}}  {one[1]:{kind}}  {one[2]:>{total}}  {one[3]}" for one in lines)
