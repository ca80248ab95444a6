"""`mlxmtp pull`: download a model if it fits disk and memory."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mlxmtp.cli.statistics import warn
from mlxmtp.errors import CheckpointError
from mlxmtp.terminal import say
from mlxmtp.units import size


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "pull",
        help="download a model to the local Hub cache",
        description="Download a Hugging Face repo, after checking its size against disk and memory.",
        epilog="Example:\n  mlxmtp pull mlx-community/Qwen3.6-27B-4bit",
    )
    command.add_argument("repo", metavar="REPO", help="owner/name")
    command.add_argument("--revision", metavar="R", help="branch, tag or commit")
    command.add_argument("--force", action="store_true", help="download what does not fit this machine's memory")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from mlxmtp.conversion.pull import head_to_pull

    snapshot = download(arguments.repo, arguments.revision, force=arguments.force)
    if head := head_to_pull(snapshot):
        try:
            download(head, None, force=arguments.force)
        except CheckpointError as error:
            warn(f"the model is here, its head is not: {error}")
    return 0


def download(repo: str, revision: str | None, *, force: bool) -> Path:
    """Download a repository, print its folder, and return it.

    Raises:
        CheckpointError: it does not fit this machine's memory, and `force` is not given.
    """
    from mlxmtp.conversion.pull import plan_pull, pull

    plan = plan_pull(repo, revision)
    if warning := plan.memory_warning:
        if not force:
            raise CheckpointError(f"{plan.repo}: {warning}; --force downloads it all the same")
        warn(warning)
    missing = f"{size(plan.missing_bytes)} to download" if plan.missing_bytes else "all of it in the Hub cache"
    say(f"{plan.repo}: {size(plan.nbytes)}, {missing}", out=sys.stderr)
    snapshot = pull(plan)
    say(str(snapshot))
    return snapshot
