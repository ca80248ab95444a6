"""The report to share: parts that go on, parts that fail, and no name of the user in it."""

from __future__ import annotations

import getpass
import io
import json
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlxmtp.bench import compare, machine_report, page, parts, products
from mlxmtp.bench.parts import Part
from mlxmtp.bench.products import ROWS, Matrix, few_row_products, matrices
from mlxmtp.checkpoints import open_checkpoint
from mlxmtp.cli.report import PAGE, REPORT
from tests.cli.conftest import Ran, main_
from tests.row_invariance import rows_differ
from tests.worker.driving import SMALL_MODEL

__all__ = ["main_"]

PROGRAM = """
import json, os, pathlib, signal, sys
runs = pathlib.Path(sys.argv[1])
runs.write_text(runs.read_text() + sys.argv[2] + " ")
words = sys.argv[2:]
if words[0] in ("130", "2"):
    print("Measuring 50 %", end="\\r\\x1b[K", file=sys.stderr)
    print("mlxmtp: no caf\u00e9 at /Users/ann/m\\n", file=sys.stderr)
    sys.exit(int(words[0]))
if words[0] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
print(json.dumps({"words": words, "terminal": sys.stderr.isatty(), "switch": os.environ.get("MLX_ONE")}))
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

    def run(wanted: list[Part], **facts: Any) -> dict[str, Any]:
        found = dict(parts.measured(tmp_path, wanted, facts, lambda number, *_: told.append(number), program))
        return {name: result.get("words", result.get("failed")) for name, result in found.items()}

    found = run(wanted)
    failed = "mlxmtp 2 ended with exit code 2; its last line: mlxmtp: no caf\u00e9 at /Users/ann/m"
    assert found == {"one": ["a"], "two": failed, "three": ["b"]}
    assert told == [1, 2, 3]
    assert run(wanted) == found
    assert (tmp_path / "runs").read_text().split() == ["a", "2", "b", "2"], "only what failed runs again"
    with pytest.raises(KeyboardInterrupt):
        run([Part("four", "Four", ("c",)), Part("five", "Five", ("130",))])
    assert run([Part("four", "Four", ("c",))])["four"] == ["c"]
    assert run([Part("four", "Four", ("d",))])["four"] == ["d"], "another command is another measurement"
    assert run([Part("four", "Four", ("d",))], mlx="0.33")["four"] == ["d"]
    assert (tmp_path / "runs").read_text().split()[4:] == ["c", "130", "d", "d"], "and so is another machine"
    assert run([Part("six", "Six", ("killed",))])["six"] == "mlxmtp killed was ended by SIGKILL"


def test_a_part_has_its_switches_and_the_terminal(
    program: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for terminal in (False, True):
        errors = io.StringIO()
        monkeypatch.setattr(errors, "isatty", lambda terminal=terminal: terminal)
        monkeypatch.setattr(sys, "stderr", errors)
        part = Part(f"one-{terminal}", "One", ("a",), switches={"MLX_ONE": "1"})
        found = parts.measure(tmp_path, part, {}, program)
        assert (found["terminal"], found["switch"]) == (terminal, "1")
        assert parts.measure(tmp_path, Part("two", "Two", ("2",)), {}, program)["failed"].endswith("/Users/ann/m")
        assert "Measuring 50 %" in errors.getvalue(), terminal


def test_a_benchmark_that_went_on_says_nothing_of_the_pace(program: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    assert "seconds" in parts.measure(tmp_path, Part("one", "One", ("a",), 1), {}, program)
    assert "seconds" not in parts.measure(tmp_path, Part("two", "Two", ("a",), 1), {}, program)


def test_the_time_left_is_at_the_pace_of_the_parts_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "measure", lambda *_: {"seconds": 60.0})
    told: list[float | None] = []
    shares = (0, 3, 1, 1)
    wanted = [Part(str(share), "", (), share) for share in shares]
    assert list(parts.measured(tmp_path, wanted, {}, lambda *args: told.append(args[2])))
    assert told == [None, None, 40.0, 30.0]


def test_options_reach_the_benchmarks(tmp_path: Path) -> None:
    for quick, limit, metal, expected in (
        (False, None, False, None),
        (True, None, False, "1"),
        (True, 5, True, "5"),
        (False, 1, True, "1"),
    ):
        wanted = parts.parts(tmp_path, ["--model=m"], quick=quick, limit=limit, metal=metal)
        assert [part.name for part in wanted if part.switches] == ["fast_synch"] * metal
        for part in wanted:
            assert part.command[-1] == "--model=m", part
            given = part.command[part.command.index("--limit") + 1] if "--limit" in part.command else None
            assert given == (expected if part.command[0] == "bench" else None), part
        assert len(wanted) == 5 + metal


def test_no_name_of_the_user_is_in_it(tmp_path: Path) -> None:
    model = tmp_path / "secret" / "model"
    found = {
        "doctor": {
            "model": {"name": str(model), "path": str(model)},
            "error": f"{model}/config.json: damaged; 3 tok/s; see https://a.b/c, '/opt/lib/x y' or ~/z",
        },
        "bench": {
            "command": "mlxmtp bench",
            "speed": [{"workload": getpass.getuser()}],
            "notes": [f"{Path.home()}/x", f"{Path.cwd()}/diary", f"{getpass.getuser()}@{socket.gethostname()}"],
        },
    }
    names = machine_report.PrivateNames.of(model)
    report = machine_report.report("small", {"system": "macOS", "switches": {"MLX_X": "/opt/x"}}, found, names)
    assert report["parts"]["bench"].pop("speed") == [{"workload": getpass.getuser()}], "no sentence"
    text = json.dumps(report)
    for name in (
        str(model),
        str(tmp_path),
        str(Path.home()),
        getpass.getuser(),
        socket.gethostname(),
        "secret",
        "diary",
    ):
        assert name not in text, name
    assert report["parts"]["doctor"]["model"] == {"name": "small"}
    assert report["parts"]["doctor"]["error"] == (
        "(left out)/config.json: damaged; 3 tok/s; see https://a.b/c, '(left out) y' or (left out)"
    )
    assert report["machine"]["switches"] == {"MLX_X": "(left out)"}
    assert machine_report.description(open_checkpoint(SMALL_MODEL)).startswith("glm4_moe, ")


def test_products_are_those_of_the_model(
    raw_checkpoint: Callable[..., Path], mlx_conversion: Callable[..., Path]
) -> None:
    raw = raw_checkpoint("qwen3_5")
    dense = matrices(open_checkpoint(raw))
    assert Matrix(288, 64, "BF16") in dense, "lm_head"
    assert not [name for names in dense.values() for name in names if "embed_tokens" in name]
    quantised = matrices(open_checkpoint(mlx_conversion(raw, bits=4, head_bits=8)))
    assert {(kind.bits, kind.group_size, kind.mode) for kind in quantised if kind.bits} >= {(4, 64, "affine")}
    assert {(kind.outputs, kind.inputs) for kind in quantised} <= {(kind.outputs, kind.inputs) for kind in dense}
    bytes_of = [kind.nbytes * len(names) for kind, names in quantised.items()]
    assert bytes_of == sorted(bytes_of, reverse=True)


def test_products_have_the_bits_of_one_row_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "RUN_S", 0.0001)
    kinds = [
        Matrix(64, 128, "F32"),
        Matrix(64, 128, "BF16", 4, 64, "affine"),
        Matrix(64, 128, "BF16", 5, 128, "no such mode"),
        Matrix(64, 128, "BF16", 4, 32, "mxfp4"),
        Matrix(64, 128, "BF16", 8, 32, "mxfp8"),
        Matrix(64, 128, "BF16", 4, 16, "nvfp4"),
    ]
    found = few_row_products({kind: ["a.b", "c.b"] for kind in kinds}, [])
    failed = [one["failed"] for one in found if "failed" in one]
    assert len(failed) == 1, failed
    for one in found:
        assert (one["names"], one["count"]) == (["b"], 2)
        if "rows" in one:
            assert {(row["variant"], row["rows"]) for row in one["rows"]} == {
                (v, n) for v in ("stock", "gathered") for n in ROWS
            }, one
            assert all(row["seconds"] > 0 for row in one["rows"]), one
            assert rows_differ() or all(row["equal"] for row in one["rows"]), one
    shown = machine_report.report("m", {}, {"products": {"products": found}}, machine_report.PrivateNames.of())
    text = machine_report.as_html(shown, {"products": "Products"})
    assert f"failed: {page.escape(failed[0])}</p>" in text
    assert text.count("<tr>") == 1 + 2 * (len(kinds) - 1), "a line for each variant of those that ran"


@pytest.mark.exhaustive
@pytest.mark.process
def test_the_command(main_: object, tmp_path: Path) -> None:
    ran: Ran = main_("report", "--quick", "--model", str(SMALL_MODEL), "--out", str(tmp_path / "out"))  # type: ignore[operator]
    assert ran.code == 0, ran.err
    text = (tmp_path / "out" / REPORT).read_text()
    assert str(SMALL_MODEL) not in text
    assert str(tmp_path) not in text
    shown = (tmp_path / "out" / PAGE).read_text()
    for words in ("Guarantees", "Speed with identity strict", "Products of few rows", "lm_head"):
        assert words in shown, words
    assert compare.load_report(tmp_path / "out" / REPORT)["speed"]
