"""`mlxmtp list`: the models of the Hub cache and of folders, and which of them fit this machine."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlxmtp.errors import CheckpointError
from mlxmtp.terminal import say
from mlxmtp.units import size

if TYPE_CHECKING:
    from mlxmtp.conversion.reports import CheckpointReport, Unreadable


@dataclass(frozen=True)
class ListedModel:
    """A model on this machine.

    Args:
        name: a repo, a folder or "demo".
        nbytes: of its weights and its head; 0: not read.
        head: family of the head; None: it has none.
        fits: whether the weights leave room in the usable memory.
        support: "speculates", "plain", "head" or "refused".
        because: the reason.
    """

    name: str
    nbytes: int
    head: str | None
    fits: bool
    support: str
    because: str


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "list",
        help="list the models on this machine, with size, head and fit",
        description="List the demo, the models of the local Hub cache, and those in the given folders.",
        epilog="Example:\n  mlxmtp list ~/models",
    )
    command.add_argument("folders", metavar="FOLDER", nargs="*", type=Path, help="a folder of model folders")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the models, and return the exit code."""
    folders = [one.expanduser() for one in arguments.folders]
    for folder in folders:
        if not folder.is_dir():
            raise CheckpointError(f"{folder}: no such folder; expected a folder of model folders")
    from mlxmtp.machine import import_backend, usable_memory

    import_backend()
    usable = usable_memory()
    models = list_models(folders)
    if arguments.json:
        say(json.dumps({"usable_bytes": usable, "models": [asdict(one) for one in models]}, indent=2))
        return 0
    rows = [(one.name, size(one.nbytes) if one.nbytes else "", *remarks(one)) for one in models]
    name, total = (max(len(row[i]) for row in rows) for i in range(2))
    for row in rows:
        say(f"{row[0]:{name}}  {row[1]:>{total}}  {row[2]:14}  {row[3]}".rstrip())
    say(f"models can take {size(usable)} on this machine")
    return 0


def list_models(folders: list[Path]) -> list[ListedModel]:
    """Return the demo, the models of the Hub cache, and those directly in `folders`."""
    from mlxmtp.conversion.inspect import inspect, inspect_cache
    from mlxmtp.conversion.reports import Unreadable

    models = [listed(inspect("demo")), *map(listed, inspect_cache())]
    for folder in folders:
        for config in sorted([folder / "config.json", *folder.glob("*/config.json")]):
            if not config.exists():
                continue
            name = str(config.parent)
            try:
                models.append(listed(inspect(name)))
            except (CheckpointError, OSError) as error:
                models.append(listed(Unreadable(name, str(error).removeprefix(f"{name}: "))))
    return models


def listed(report: CheckpointReport | Unreadable) -> ListedModel:
    """Return what the list says of a model."""
    from mlxmtp.conversion.reports import Unreadable
    from mlxmtp.machine import memory_warning

    if isinstance(report, Unreadable):
        return ListedModel(report.name, 0, None, False, "refused", report.error)
    nbytes = report.trunk.nbytes + (report.head.weights.nbytes if report.head else 0)
    head = report.head.family if report.head else None
    return ListedModel(report.name, nbytes, head, not memory_warning(nbytes), report.support, report.because)


def remarks(model: ListedModel) -> tuple[str, str]:
    """Return the head and the fit in words."""
    if model.support == "refused":
        return "cannot be used", model.because.split("\n")[0]
    if model.support == "head":
        return "a head alone", ""
    head = (model.head or "a head apart") if model.support == "speculates" else "no head"
    return head, "fits" if model.fits else "too large here"
