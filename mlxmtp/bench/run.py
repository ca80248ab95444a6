"""A benchmark from its plan to its report, in a folder where it can go on."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mlxmtp.bench import compare, page
from mlxmtp.bench.measure import Bench, Tell
from mlxmtp.bench.plan import Plan
from mlxmtp.bench.records import Records
from mlxmtp.bench.summary import summarise
from mlxmtp.engine.engine import Engine
from mlxmtp.files import write_whole

PAGE = "report.html"
COMPARED, COMPARED_PAGE = "compare.json", "compare.html"


def default_folder(plan: Plan) -> Path:
    """In the working folder, the same for the same benchmark."""
    name = re.sub(r"[^\w.-]+", "-", Path(plan.head["model"]["name"]).name).strip("-.") or "model"
    return Path("mlxmtp-bench") / f"{name}-{plan.head['identity'][:8]}"


def measure(
    engine: Engine,
    plan: Plan,
    records: Records,
    on_progress: Callable[[int, int], None] = lambda *_: None,
    tell: Tell = lambda _: None,
) -> None:
    """Measure what `records` do not have yet; each unit is written as it comes.

    Args:
        on_progress: told (done, total) units, those of earlier runs among them. tell: what is measured now.
    """
    bench = Bench(engine, plan, tell)
    done = records.done
    count = sum(unit.key in done for unit in plan.units)
    on_progress(count, len(plan.units))
    for unit in plan.units:
        if unit.key not in done:
            records.append(bench.measure(unit))
            count += 1
            on_progress(count, len(plan.units))


def report(plan: Plan, records: Records, command: Sequence[str] = ()) -> dict[str, Any]:
    """The report of what the records have, as far as it belongs to the plan."""
    newest = {record["key"]: record for record in records.all}  # of what failed and was tried again
    found = [newest[unit.key] for unit in plan.units if unit.key in newest]
    summary = summarise(records.head, found, planned=len(plan.units), notes=plan.notes)
    date = time.strftime("%Y-%m-%d %H:%M", time.localtime(found[0]["time"])) if found else ""
    return summary | {"command": " ".join(command), "date": date}


def write_report(folder: Path, summary: dict[str, Any]) -> tuple[Path, Path]:
    """As JSON and as a page; returns their paths."""
    data, shown = folder / compare.REPORT, folder / PAGE
    write_whole(data, json.dumps(summary, ensure_ascii=False, indent=1) + "\n")
    write_whole(shown, page.as_html(summary))
    return data, shown


def write_comparison(folder: Path, found: dict[str, Any]) -> tuple[Path, Path]:
    """As JSON and as a page; returns their paths."""
    data, shown = folder / COMPARED, folder / COMPARED_PAGE
    write_whole(data, json.dumps(found, ensure_ascii=False, indent=1) + "\n")
    write_whole(shown, compare.as_html(found))
    return data, shown
