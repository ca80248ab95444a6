"""`mlxmtp inspect`: what a model is, which head it has, and what mlxmtp will do with it."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from mlxmtp.units import size

if TYPE_CHECKING:
    from mlxmtp.conversion.inspect import HeadReport, Report, Weights
    from mlxmtp.heads import SelfCheck


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
    command.add_argument("--check", action="store_true", help="load the model, and try the head on a short text")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from mlxmtp.conversion.inspect import Report, inspect, inspect_cache

    if arguments.model is None:
        found = inspect_cache()
        if arguments.json:
            print(json.dumps([asdict(one) if isinstance(one, Report) else {"error": one} for one in found], indent=2))
        else:
            print("\n".join(line(one) for one in found) or "the local Hub cache holds no models")
        return 0
    report = inspect(arguments.model)
    check = checked(arguments.model) if arguments.check and report.speculates else None
    if arguments.json:
        print(json.dumps(asdict(report) | ({"check": asdict(check)} if check else {}), indent=2))
    else:
        print(as_text(report, check))
    return 0


def checked(model: str) -> SelfCheck:
    """The head's drafts held against the trunk on a short text."""
    import mlxmtp
    from mlxmtp.chat.prompt import encode
    from mlxmtp.heads import self_check
    from mlxmtp.heads.check import TEXT

    engine = mlxmtp.load(model)
    assert engine.mtp is not None
    return self_check(engine.target, engine.mtp, encode(engine.tokenizer, TEXT, raw=True))


def as_text(report: Report, check: SelfCheck | None) -> str:
    lines = [
        ("model", f"{report.name}, {report.model_type}, {report.format} layout"),
        ("size", f"{report.layers} layers, hidden {report.hidden_size}, vocabulary {report.vocab_size}, "
                 f"context {report.context}"),
        ("trunk", weights(report.trunk)),
        ("head", head(report.head) if report.head else "none"),
        ("mlxmtp", ("speculates: " if report.speculates else "decodes plainly: ") + report.because),
    ]  # fmt: skip
    if report.revision:
        lines.insert(1, ("commit", report.revision))
    if check:
        lines.append(("check", check.warning or f"{check.acceptance:.0%} of first drafts taken on a short text"))
    return "\n".join(f"{name:8}{value}" for name, value in lines)


def weights(part: Weights) -> str:
    shown = part.files[0] if len(part.files) == 1 else f"{len(part.files)} files"
    return f"{size(part.nbytes)} in {shown}, {part.quantization or part.dtype}"


def head(found: HeadReport) -> str:
    norms = f"norms {found.norms}" if found.norms else "norms: told by their values when loaded"
    source = f", from {found.source}" if found.source else ""
    return f"{found.layers} MTP layer(s) in the {found.place}, {weights(found.weights)}, {norms}{source}"


def line(found: Report | str) -> str:
    """One model of the cache."""
    if isinstance(found, str):
        return found
    total = found.trunk.nbytes + (found.head.weights.nbytes if found.head else 0)
    verdict = "speculates" if found.speculates else f"plain: {found.because}"
    return f"{found.name}  {found.model_type}  {size(total)}  {verdict}"
