"""`mlxmtp rm`: remove a model from the Hub cache."""

from __future__ import annotations

import argparse
import sys

from mlxmtp.errors import CheckpointError, OptionError
from mlxmtp.names import REPO
from mlxmtp.terminal import say, visible
from mlxmtp.units import size


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "rm",
        help="remove a model from the local Hub cache",
        description="Remove all that the local Hub cache keeps of a repo. It asks first.\n"
        "A folder of your own is never removed.",
        epilog="Example:\n  mlxmtp rm mlx-community/Qwen3.6-27B-4bit",
    )
    command.add_argument("repo", metavar="REPO", help="owner/name, as `mlxmtp list` shows it")
    command.add_argument("-y", "--yes", action="store_true", help="do not ask")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Remove the repo, print what that freed, and return the exit code."""
    repo = arguments.repo
    if not REPO.fullmatch(repo):
        raise CheckpointError(f"{repo}: expected a Hub repo (owner/name); a folder of your own is not removed")
    from mlxmtp.checkpoints.cache_removal import cached_repo, remove_cached

    found = cached_repo(repo)
    if not arguments.yes:
        if not sys.stdin.isatty():
            raise OptionError(f"{repo}: rm asks first, and standard input is no terminal; add -y")
        sys.stderr.write(f"remove {visible(repo)}, {size(found.nbytes)}, from the Hub cache? [y/N] ")
        sys.stderr.flush()
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            say("nothing is removed")
            return 0
    remove_cached(found)
    say(f"{repo}: removed, {size(found.nbytes)} freed")
    return 0
