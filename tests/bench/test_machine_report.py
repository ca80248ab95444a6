"""The report to share: parts that go on, parts that fail, and no name of the user in it."""

from __future__ import annotations

import getpass
import json
import socket
import sys
from pathlib import Path

import pytest

from mlxmtp.bench import compare, machine_report
from mlxmtp.bench.machine_report import Part
from mlxmtp.bench.products import ROWS, few_row_products
from mlxmtp.checkpoints import open_checkpoint
from mlxmtp.cli.report import PAGE, REPORT
from tests.cli.conftest import Ran, main_
from tests.worker.driving import SMALL_MODEL

__all__ = ["main_"]

PROGRAM = """
import json, pathlib, sys
runs = pathlib.Path(sys.argv[1])
runs.write_text(runs.read_text() + sys.argv[2] + " ")
words = sys.argv[2:]
if words[0] in ("130", "2"):
    sys.exit(int(words[0]))
print(json.dumps({"words": words}))
"""


@pytest.fixture
def program(tmp_path: Path) -> tuple[str, ...]:
    """A program that notes its runs in `tmp_path / "runs"` and prints its words, or ends with the code it is given."""
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "runs").write_text("")
    return sys.executable, str(tmp_path / "program.py"), str(tmp_path / "runs")


def test_parts_go_on_where_they_stopped(program: tuple[str, ...], tmp_path: Path) -> None:
    wanted = [Part("one", "One", ("a",)), Part("two", "Two", ("2",)), Part("three", "Three", ("b",))]
    told: list[int] = []

    def run(parts: list[Part]) -> dict[str, machine_report.Row]:
        return dict(machine_report.measured(tmp_path, parts, lambda number, _: told.append(number), program))

    found = run(wanted)
    assert found["one"] == {"words": ["a"]}
    assert found["two"] == {"failed": "mlxmtp 2 ended with exit code 2"}
    assert found["three"] == {"words": ["b"]}
    assert told == [1, 2, 3]
    assert run(wanted) == found
    assert (tmp_path / "runs").read_text().split() == ["a", "2", "b", "2"], "only what failed runs again"
    with pytest.raises(KeyboardInterrupt):
        run([Part("four", "Four", ("c",)), Part("five", "Five", ("130",))])
    assert run([Part("four", "Four", ("c",))])["four"] == {"words": ["c"]}
    assert run([Part("four", "Four", ("d",))])["four"] == {"words": ["d"]}, "another command is another measurement"
    assert (tmp_path / "runs").read_text().split()[4:] == ["c", "130", "d"]


def test_no_name_of_the_user_is_in_it(tmp_path: Path) -> None:
    model = tmp_path / "secret" / "model"
    found = {
        "doctor": {
            "model": {"name": str(model), "path": str(model)},
            "error": f"{model}/config.json: damaged, relative/model too",
        },
        "bench": {
            "command": "mlxmtp bench",
            "speed": [{"workload": getpass.getuser()}],
            "notes": [f"{Path.home()}/x", f"{getpass.getuser()}@{socket.gethostname()}"],
        },
    }
    names = machine_report.PrivateNames.of("relative/model", model, tmp_path)
    report = machine_report.report("small", {"system": "macOS"}, found, [], names)
    assert report["parts"]["bench"].pop("speed") == [{"workload": getpass.getuser()}], "no sentence"
    text = json.dumps(report)
    for name in (str(model), str(tmp_path), str(Path.home()), getpass.getuser(), socket.gethostname(), "secret"):
        assert name not in text, name
    assert report["parts"]["doctor"]["model"] == {"name": "small"}
    assert report["parts"]["doctor"]["error"] == "(left out)/config.json: damaged, (left out) too"
    assert machine_report.description(open_checkpoint(SMALL_MODEL)).startswith("glm4_moe, ")


def test_products_have_the_bits_of_one_row_on_a_cpu() -> None:
    found = few_row_products(64, [])
    assert {(row["variant"], row["rows"]) for row in found} == {(v, n) for v in ("stock", "gathered") for n in ROWS}
    assert all(row["equal"] and row["seconds"] > 0 for row in found)


@pytest.mark.exhaustive
@pytest.mark.process
def test_the_command(main_: object, tmp_path: Path) -> None:
    ran: Ran = main_("report", "--quick", "--model", str(SMALL_MODEL), "--out", str(tmp_path / "out"))  # type: ignore[operator]
    assert ran.code == 0, ran.err
    text = (tmp_path / "out" / REPORT).read_text()
    assert str(SMALL_MODEL) not in text
    assert str(tmp_path) not in text
    page = (tmp_path / "out" / PAGE).read_text()
    for words in ("Guarantees", "token-identical", "Speed with identity strict", "Products of few rows"):
        assert words in page or words == "token-identical", words
    assert compare.load_report(tmp_path / "out" / REPORT)["speed"]
