"""`mlxmtp attach`: give a converted model the head that its conversion dropped."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mlxmtp.cli.inspect import checked, outcome
from mlxmtp.cli.progress import ByteProgress
from mlxmtp.cli.statistics import warn
from mlxmtp.terminal import say
from mlxmtp.units import size


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "attach",
        help="give a converted model the head that its conversion lost",
        description="Fetch only the MTP head of the original model, and store it beside a conversion of it.\n"
        "For a model in the Hub cache it is kept in mlxmtp's own data folder.",
        epilog="Example:\n  mlxmtp attach mlx-community/Qwen3.6-27B-4bit --from Qwen/Qwen3.6-27B",
    )
    add = command.add_argument
    add("trunk", metavar="TRUNK", help="the converted model: a folder or a Hugging Face repo")
    source = "the model with the head: a folder, a Hugging Face repo, an mlx-vlm drafter, FILE.gguf or REPO/FILE.gguf"
    add("--from", dest="original", metavar="ORIGINAL", required=True, help=source)
    add("--revision", metavar="R", help="branch, tag or commit of ORIGINAL")
    head_bits = "bits of the head; 16 does not quantise it (default: 8 beside a quantised model, else as it is)"
    add("--head-bits", type=int, choices=(4, 8, 16), help=head_bits)
    add("--out", metavar="FOLDER", type=Path, help="a new folder for model and head; TRUNK stays as it is")
    add("--no-check", action="store_true", help="do not load the model to try the head on a short text")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from mlxmtp.conversion.attach import attach

    with ByteProgress(sys.stderr, f"Fetching the head of {arguments.original}") as progress:
        done = attach(
            arguments.trunk,
            arguments.original,
            head_bits=arguments.head_bits,
            out=arguments.out,
            revision=arguments.revision,
            on_bytes=progress.update,
        )
    say(f"{done.file}: {size(done.nbytes)}")
    if not arguments.no_check:
        check = checked(str(done.model))
        if check.warning:
            warn(f"{check.warning}; to undo, remove {done.file}")
        else:
            say(outcome(check))
    return 0
