"""A benchmark in its folder: killed between two units, it goes on, and its report is that of one run."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest

from mlxmtp import Engine
from mlxmtp.bench import run
from mlxmtp.bench.measure import Measurement
from mlxmtp.bench.plan import BenchPlan, BenchUnit
from mlxmtp.bench.records import FILE, Records
from mlxmtp.files import write_whole
from tests.bench.conftest import record


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Keys of the units that were measured, with invented records."""
    keys: list[str] = []

    def invented(self: Measurement, unit: BenchUnit) -> dict[str, Any]:
        keys.append(unit.key)
        return record(unit.kind, unit.repeat, unit.number) | {
            "key": unit.key,
            "temperature": unit.temperature,
            "workload": unit.workload,
            "time": 0.0,
        }

    monkeypatch.setattr(Measurement, "measure", invented)
    return keys


def test_killed_anywhere_it_goes_on(tmp_path: Path, engine: Engine, plan: BenchPlan, measured: list[str]):
    every = [unit.key for unit in plan.units]
    reports = []
    for stop in range(len(every) + 1):
        measured.clear()
        folder = tmp_path / str(stop)

        def progress(done: int, total: int, stop: int = stop) -> None:
            assert total == len(every)
            if done == stop < total:
                raise KeyboardInterrupt

        if stop < len(every):
            with Records(folder, plan.head) as records, pytest.raises(KeyboardInterrupt):
                run.measure(engine, plan, records, progress)
            assert measured == every[:stop]
        with Records(folder, plan.head) as records:
            run.measure(engine, plan, records)
            reports.append(run.report(plan, records))
        assert measured == every
    assert all(report == reports[0] for report in reports)
    assert reports[0]["complete"]


def test_what_failed_is_tried_again(tmp_path: Path, engine: Engine, plan: BenchPlan, measured: list[str]):
    last = plan.units[-1]
    with Records(tmp_path, plan.head) as records:
        for unit in plan.units[:-1]:
            records.append(Measurement(engine, plan).measure(unit))
        fields = {"workload": "context", "number": 96, "temperature": 0.0, "repeat": 1, "time": 0.0}
        records.append({"key": last.key, "kind": last.kind, "failed": "out of memory: no", **fields})
        assert not run.report(plan, records)["complete"]
    measured.clear()
    with Records(tmp_path, plan.head) as records:
        run.measure(engine, plan, records)
        assert measured == [last.key]
        assert run.report(plan, records)["complete"]
        assert run.report(plan, records)["notes"] == []


def test_progress_counts_what_was_there(tmp_path: Path, engine: Engine, plan: BenchPlan, measured: list[str]):
    told: list[tuple[int, int]] = []
    with Records(tmp_path, plan.head) as records:
        records.append(Measurement(engine, plan).measure(plan.units[3]))
        run.measure(engine, plan, records, lambda *now: told.append(now))
    assert told == [(done, len(plan.units)) for done in range(1, len(plan.units) + 1)]


def test_the_report_is_written_as_json_and_as_a_page(
    tmp_path: Path, plan: BenchPlan, engine: Engine, measured: list[str]
):
    with Records(tmp_path, plan.head) as records:
        run.measure(engine, plan, records)
        summary = run.report(plan, records, ["mlxmtp", "bench"])
    data, page = run.write_report(tmp_path, summary)
    assert json.loads(data.read_text()) == json.loads(json.dumps(summary))
    assert "mlxmtp bench" in page.read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == [FILE, "report.html", "report.json"]


def test_a_full_disk_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_whole(tmp_path / "report.json", "old")

    def full(self: Path, text: str, **_: Any) -> int:
        with open(self, "w") as file:
            file.write(text[:2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(tmp_path / "report.json", "newer")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("report.json", "old")]


@pytest.mark.parametrize(
    ("name", "begins"), [("demo", "demo-"), ("owner/Some Model (4)", "Some-Model-4-"), ("..", "model-")]
)
def test_the_default_folder_has_a_name_of_its_own(plan: BenchPlan, name: str, begins: str):
    plan.head["model"]["name"] = name
    folder = run.default_folder(plan)
    assert folder.parent == Path("mlxmtp-bench")
    assert folder.name == begins + plan.head["identity"][:8]
