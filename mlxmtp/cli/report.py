"""`mlxmtp report`: measure this machine with a model, and write one file to share."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mlxmtp import machine
from mlxmtp.cli import options
from mlxmtp.cli.bench import duration
from mlxmtp.cli.progress import Progress
from mlxmtp.files import write_whole
from mlxmtp.terminal import say

if TYPE_CHECKING:
    from mlxmtp.checkpoints import Checkpoint

REPORT, PAGE = "mlxmtp-report.json", "mlxmtp-report.html"
"""Names of the files."""


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "report",
        help="measure this machine with a model, in one file to share",
        description="Run the doctor, products of few rows, and benchmarks of depths, contexts, the model's own\n"
        "sampling and the identities; write one JSON file and one page, after each part. No path, user or host is\n"
        "in them; the name of a Hub repo is. The same command run again goes on where it stopped.",
        epilog="Example:\n  mlxmtp report --model ./Qwen3.5-4B",
    )
    add = command.add_argument
    add("--model", metavar="PATH|REPO", default="demo", help="a model folder or a Hugging Face repo (default: demo)")
    add("--head", metavar="PATH|REPO", help="take the MTP head from here")
    options.add_device(add)
    add("--out", metavar="FOLDER", type=Path, help="measurements and report (default: mlxmtp-report/MODEL)")
    add("--quick", action="store_true", help="few prompts and short contexts: minutes, and rougher figures")
    few = "prompts of a workload (default: 2; of a quick report 1)"
    add("--limit", metavar="N", type=options.at_least(1), help=few)
    add("--products", action="store_true", help="print only the products of few rows, as JSON")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Measure the parts that are missing, write the report after each, and return the exit code."""
    from mlxmtp.checkpoints import open_checkpoint
    from mlxmtp.checkpoints.checkpoint import local_path

    checkpoint = open_checkpoint(arguments.model)
    machine.import_backend()
    from mlxmtp.bench import machine_report, parts
    from mlxmtp.engine.store import file_facts

    if arguments.products:
        return print_products(checkpoint)
    name = machine_report.description(checkpoint)
    folder = (arguments.out or Path("mlxmtp-report") / re.sub(r"[^\w.-]+", "-", name)).expanduser().absolute()
    wanted = parts.parts(
        folder, loading(arguments), quick=arguments.quick, limit=arguments.limit, metal=machine.on_metal()
    )
    titles = {part.name: part.title for part in wanted}
    names = machine_report.PrivateNames.of(folder, checkpoint.folder, *filter(None, [local_path(arguments.head or "")]))
    facts = machine.hardware() | machine.backend() | {"versions": machine.versions()}
    asked = facts | {"files": [list(one) for one in file_facts({info.file for info in checkpoint.tensors.values()})]}
    found: dict[str, parts.Row] = {}

    def show(number: int, part: parts.Part, seconds: float | None) -> None:
        left = "" if seconds is None else f", about {duration(seconds)} left for all"
        say(f"part {number} of {len(wanted)}{left}: {part.title}", out=sys.stderr)

    try:
        for part, result in parts.measured(folder, wanted, asked, show):
            found[part] = result
            report = machine_report.report(name, facts, found, names)
            write_whole(folder / REPORT, json.dumps(report, ensure_ascii=False, indent=1, default=str) + "\n")
            write_whole(folder / PAGE, machine_report.as_html(report, titles))
    except KeyboardInterrupt:
        say(f"mlxmtp: what is measured is kept in {folder}; the same command goes on from there", out=sys.stderr)
        raise
    failed = [name for name, result in found.items() if result.get("failed") or result.get("error")]
    if failed:
        say(f"mlxmtp: failed: {', '.join(failed)}; the same command tries them again", out=sys.stderr)
    say(f"{folder / REPORT}\n{folder / PAGE}")
    return 1 if failed else 0


def loading(arguments: argparse.Namespace) -> list[str]:
    """Return the options of the model for another command. Paths are absolute, so that their names can be left out."""
    given = {"model": arguments.model, "head": arguments.head, "device": arguments.device}
    typed = {name: os.path.expanduser(value) for name, value in given.items() if value}
    return [f"--{name}={os.path.abspath(path) if os.path.exists(path) else path}" for name, path in typed.items()]


def print_products(checkpoint: Checkpoint) -> int:
    """Measure the products of a model's matrices, and print them as JSON."""
    from mlxmtp.bench.products import few_row_products, matrices
    from mlxmtp.engine.store import own_kernels

    with Progress(sys.stderr, "Multiplying", lambda done, total: f"{done} of {total} kinds of matrices") as progress:
        products = few_row_products(matrices(checkpoint), own_kernels(), progress.update)
    say(json.dumps({"products": products}))
    return 0
