"""`mlxmtp inspect`: what a model is, which head it has, and what mlxmtp will do with it."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxmtp.errors import HeadError, OptionError, PromptError
from mlxmtp.units import size

if TYPE_CHECKING:
    from mlxmtp import Engine
    from mlxmtp.conversion.inspect import HeadReport, Report, Unreadable
    from mlxmtp.conversion.weights import Weights
    from mlxmtp.engine.conventions import Tried
    from mlxmtp.heads import SelfCheck

WHERE = {"folder": "", "cache": ", in the Hub cache", "hub": ", on the Hub, not downloaded"}
VERDICTS = {"speculates": "speculates", "plain": "decodes plainly", "refused": "refuses it"}


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "inspect",
        help="say what a model is, which head it has, and what is done with it",
        description="Describe a model folder or a Hugging Face repo from its headers; of a repo that is not\n"
        "downloaded, no weights are read. Without a name: every model in the local Hub cache.",
        epilog="Example:\n  mlxmtp inspect Qwen/Qwen3.6-27B",
    )
    command.add_argument("model", metavar="PATH|REPO", nargs="?", help="a model folder or a Hugging Face repo")
    command.add_argument("--json", action="store_true", help="print JSON")
    check = "try the head on a short text: loads the model, and downloads a repo that is not there"
    command.add_argument("--check", action="store_true", help=check)
    readings = "try every way to read the head on which references disagree, and say which drafts best"
    command.add_argument("--try-head", action="store_true", help=readings)
    command.add_argument("--text", metavar="FILE", type=Path, help="the text to try it on (default: a built-in one)")
    command.add_argument("--head", metavar="PATH|REPO", help="the head to try (default: the model's own)")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    tries = arguments.check or arguments.try_head
    given = arguments.head is not None
    if not tries and (arguments.text or given):
        raise OptionError("--text and --head are for trying a head; add --check or --try-head")
    if arguments.model is None:
        if tries:
            raise OptionError("--check and --try-head load a model; name the one to try")
        return list_cache(as_json=arguments.json)
    from mlxmtp.conversion.inspect import inspect

    report = inspect(arguments.model)
    if arguments.json:
        print(json.dumps(asdict(report) | (tried(arguments, report.speculates or given) if tries else {}), indent=2))
        return 0
    print(as_text(report), flush=True)
    if tries and not (report.speculates or given):
        print(row("check", "there is no head to try"))
    elif tries:
        show_tries(arguments)
    return 0


def list_cache(*, as_json: bool) -> int:
    from mlxmtp.checkpoints.hub import hub_cache
    from mlxmtp.conversion.inspect import inspect_cache

    found = inspect_cache()
    if as_json:
        print(json.dumps([asdict(one) for one in found], indent=2))
    elif found:
        print(table([line(one) for one in found]))
    else:
        print(f"no models in the local Hub cache, {hub_cache()}")
    return 0


def checked(model: str) -> SelfCheck:
    """The head's drafts held against the trunk on a short text."""
    return check(*head_and_text(model, None, None))


def check(engine: Engine, tokens: list[int]) -> SelfCheck:
    from mlxmtp.heads import self_check

    assert engine.mtp is not None
    return self_check(engine.target, engine.mtp, tokens)


def head_and_text(model: str, head: str | None, file: Path | None) -> tuple[Engine, list[int]]:
    """A model with its head, and the tokens to try it on.

    Raises:
        HeadError: it has none. PromptError: the file cannot be read.
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


def tried(arguments: argparse.Namespace, there_is_one: bool) -> dict[str, Any]:
    """What trying the head adds to the JSON of a report; null where there is none."""
    from mlxmtp.engine.conventions import try_conventions

    if not there_is_one:
        asked = {"check": arguments.check, "readings": arguments.try_head}
        return {name: None for name, wanted in asked.items() if wanted}
    engine, tokens = head_and_text(arguments.model, arguments.head, arguments.text)
    found: dict[str, Any] = {"check": asdict(check(engine, tokens))} if arguments.check else {}
    if arguments.try_head:
        found["readings"] = [asdict(one) for one in try_conventions(engine, tokens)]
    return found


def show_tries(arguments: argparse.Namespace) -> None:
    from mlxmtp.engine.conventions import try_conventions

    engine, tokens = head_and_text(arguments.model, arguments.head, arguments.text)
    if arguments.check:
        print(row("check", outcome(check(engine, tokens))), flush=True)
    if arguments.try_head:
        every = []
        for one in try_conventions(engine, tokens):
            every.append(one)
            print(row("" if len(every) > 1 else "read", reading(one)), flush=True)
        print(row("best", verdict(every)))


def reading(one: Tried) -> str:
    stood = ", ".join(f"{share:.0%}" for share in one.acceptance)
    named = choices(one) + (" (default)" if one.default else "")
    a_round = f"{one.tokens_per_round:.2f} ± {one.standard_error:.2f} tokens a round"
    return f"{named}: {a_round}; drafts accepted at depth 1, 2, 3: {stood}"


def choices(one: Tried) -> str:
    return ", ".join(f"{name} {value}" for name, value in one.reading.items())


def verdict(every: list[Tried]) -> str:
    default = next(one for one in every if one.default)
    best = max(every, key=lambda one: one.tokens_per_round)
    if not best.clearly_beats(default):
        rounds = min(one.rounds for one in every)
        return f"none is clearly better than the default, over {rounds} rounds of each"
    return f"{choices(best)}; please report it with this table: the default of this family should change"


def outcome(check: SelfCheck) -> str:
    if check.warning:
        return f"warning: {check.warning}"
    return f"{check.acceptance:.0%} of the head's drafts taken on a short text"


def as_text(report: Report) -> str:
    sizes = {"hidden": report.hidden_size, "experts": report.experts, "vocabulary": report.vocab_size,
             "context": report.context}  # fmt: skip
    known = [f"{report.layers} layers"] + [f"{name} {value}" for name, value in sizes.items() if value]
    rows = {
        "model": report.name + WHERE[report.where],
        "commit": report.revision,
        "type": report.model_type + (f", {report.format} layout" if report.format else ""),
        "size": ", ".join(known) if report.layers else "",
        "trunk": weights(report.trunk) if report.trunk.files else "none",
        "head": head(report.head) if report.head else "none",
        "mlxmtp": f"{VERDICTS[report.verdict]}: {report.because}",
    }
    return "\n".join(row(name, value) for name, value in rows.items() if value)


def row(name: str, value: str) -> str:
    return f"{name:8}{value}"


def weights(part: Weights) -> str:
    where = part.files[0] if len(part.files) == 1 else f"{len(part.files)} files"
    formats = [part.quantization, f"the rest {part.dtype}" if part.quantization and part.dtype else part.dtype]
    return "; ".join([f"{size(part.nbytes)} in {where}", *(one for one in formats if one)])


def head(found: HeadReport) -> str:
    layers = f", {found.layers} layer{'s' if found.layers > 1 else ''}" if found.layers else ""
    told = [weights(found.weights), f"norms {found.norms or 'not read'}"]
    source = [f"from {found.source}"] if found.source else []
    return "; ".join([f"{found.family or 'of an unknown kind'}{layers}, {found.place}", *told, *source])


def line(found: Report | Unreadable) -> tuple[str, str, str, str]:
    """One model of the cache: name, type, size, verdict."""
    from mlxmtp.conversion.inspect import Unreadable

    if isinstance(found, Unreadable):
        return found.name, "", "", f"unreadable: {found.error}"
    total = found.trunk.nbytes + (found.head.weights.nbytes if found.head else 0)
    verdict = VERDICTS[found.verdict] + ("" if found.speculates else f": {found.because}")
    return found.name, found.model_type, size(total), verdict


def table(lines: list[tuple[str, str, str, str]]) -> str:
    name, kind, total = (max(len(line[i]) for line in lines) for i in range(3))
    return "\n".join(f"{one[0]:{name}}  {one[1]:{kind}}  {one[2]:>{total}}  {one[3]}" for one in lines)
