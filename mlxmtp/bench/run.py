"""Run a benchmark: measure the units of its plan into a folder, and write its report there."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mlxmtp.bench import compare, page
from mlxmtp.bench.measure import Measurement, OnStep
from mlxmtp.bench.plan import BenchPlan
from mlxmtp.bench.records import Records
from mlxmtp.bench.summary import summarise
from mlxmtp.engine.engine import Engine
from mlxmtp.files import write_whole

PAGE = "report.html"
COMPARED, COMPARED_PAGE = "compare.json", "compare.html"


def default_folder(plan: BenchPlan) -> Path:
    """Return the folder of a benchmark below the working folder. The same benchmark has the same folder."""
    name = re.sub(r"[^\w.-]+", "-", Path(plan.head["model"]["name"]).name).strip("-.") or "model"
    return Path("mlxmtp-bench") / f"{name}-{plan.head['identity'][:8]}"


def measure(
    engine: Engine,
    plan: BenchPlan,
    records: Records,
    on_progress: Callable[[int, int], None] = lambda *_: None,
    on_step: OnStep = lambda _: None,
) -> None:
    """Measure the units that `records` lack, and write the record of each at once.

    Args:
        on_progress: called with (done, total) units; units of earlier runs count as done.
        on_step: called with a description of each step.
    """
    measurement = Measurement(engine, plan, on_step)
    done = records.done
    count = sum(unit.key in done for unit in plan.units)
    on_progress(count, len(plan.units))
    for unit in plan.units:
        if unit.key not in done:
            records.append(measurement.measure(unit))
            count += 1
            on_progress(count, len(plan.units))


def report(plan: BenchPlan, records: Records, command: Sequence[str] = ()) -> dict[str, Any]:
    """Return the report of the records that belong to the plan.

    Args:
        command: words of the command line, for the report.
    """
    newest = {record["key"]: record for record in records.all}  # a unit that failed can have several
    measured = [newest[unit.key] for unit in plan.units if unit.key in newest]
    summary = summarise(records.head, measured, planned=len(plan.units), notes=plan.notes)
    date = time.strftime("%Y-%m-%d %H:%M", time.localtime(measured[0]["time"])) if measured else ""
    return summary | {"command": " ".join(command), "date": date}


def write_report(folder: Path, summary: dict[str, Any]) -> tuple[Path, Path]:
    """Write a report as JSON and as a page, and return their paths."""
    data, shown = folder / compare.REPORT, folder / PAGE
    write_whole(data, json.dumps(summary, ensure_ascii=False, indent=1) + "\n")
    write_whole(shown, page.as_html(summary))
    return data, shown


def write_comparison(folder: Path, comparison: dict[str, Any]) -> tuple[Path, Path]:
    """Write a comparison of two reports as JSON and as a page, and return their paths."""
    data, shown = folder / COMPARED, folder / COMPARED_PAGE
    write_whole(data, json.dumps(comparison, ensure_ascii=False, indent=1) + "\n")
    write_whole(shown, compare.as_html(comparison))
    return data, shown
