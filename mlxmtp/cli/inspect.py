"""`mlxmtp inspect`: what a model is, which head it has, and what mlxmtp will do with it."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from mlxmtp.errors import HeadError, OptionError
from mlxmtp.units import size

if TYPE_CHECKING:
    from mlxmtp.conversion.inspect import HeadReport, Report, Unreadable
    from mlxmtp.conversion.weights import Weights
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
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    if arguments.model is None:
        if arguments.check:
            raise OptionError("--check loads a model; name the one to check")
        return list_cache(as_json=arguments.json)
    from mlxmtp.conversion.inspect import inspect

    report = inspect(arguments.model)
    check = checked(arguments.model) if arguments.check and report.speculates else None
    if arguments.json:
        print(json.dumps(asdict(report) | ({"check": check and asdict(check)} if arguments.check else {}), indent=2))
        return 0
    print(as_text(report))
    if arguments.check:
        print(row("check", outcome(check) if check else "there is no head to try"))
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
    import mlxmtp
    from mlxmtp.chat.prompt import encode
    from mlxmtp.heads import self_check
    from mlxmtp.heads.check import TEXT

    engine = mlxmtp.load(model)
    if engine.mtp is None:
        raise HeadError(f"{model}: no head to try: {engine.plain_because}")
    return self_check(engine.target, engine.mtp, encode(engine.tokenizer, TEXT, raw=True))


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
