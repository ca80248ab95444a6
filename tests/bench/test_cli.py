"""`mlxmtp bench` from end to end on a tiny model: output, resumption, interruption, bad input."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlx_lm.sample_utils import make_sampler

from mlxmtp.bench import runs
from mlxmtp.bench.measure import Measurement
from mlxmtp.bench.plan import BenchUnit
from mlxmtp.cli import bench as command
from mlxmtp.cli import options
from tests.cli.conftest import Ran, assert_refused, impatient, main_

__all__ = ["impatient", "main_"]

FEW = ("--tokens", "8", "--repeats", "1", "--limit", "1", "--workload", "math", "--depths", "1", "--temps", "0")
Cli = Callable[..., Ran]


@pytest.fixture
def model(raw_checkpoint: Callable[..., Path]) -> str:
    return str(raw_checkpoint("qwen3_5", dtype="float32", positions=512, layers=2, interval=2))


@pytest.fixture
def bench(main_: Cli, model: str, tmp_path: Path) -> Cli:
    """bench(*options): a short `mlxmtp bench` of the tiny model into `tmp_path / "out"`."""
    out = str(tmp_path / "out")
    return lambda *options: main_("bench", "--model", model, "--out", out, *FEW, "--contexts", "64", *options)


@pytest.mark.usefixtures("impatient")
def test_progress_table_json_and_page(bench: Cli, tmp_path: Path):
    ran = bench()
    assert ran.code == 0
    for words in (
        "math, temperature 0",
        "depth 1",
        "auto beside the best",
        "context",
        "cost at 64 tokens",
        "identical",
    ):
        assert words in ran.out
    for words in ("Measuring: [", "of 2", "; math 0, depth 1", str(tmp_path / "out" / "report.html")):
        assert words in ran.err
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [row["arm"] for row in report["speed"]] == ["mlx-lm", "plain", "depth 1", "auto"]
    assert report["differences"] == []
    assert (tmp_path / "out" / "report.html").read_text().startswith("<!doctype html>")


def test_the_model_s_own_sampling_is_measured_and_named(
    main_: Cli, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    copy, out = tmp_path / "model", tmp_path / "out"
    shutil.copytree(model, copy)
    advice = {"temperature": 0.6, "top_p": 0.9, "top_k": 5, "repetition_penalty": 1.1}
    (copy / "generation_config.json").write_text(json.dumps(advice))
    few = FEW[: FEW.index("--temps")]
    of_mlx_lm: set[object] = set()

    def noting(*chain: object, **more: object) -> object:
        of_mlx_lm.add((chain, *more.items()))
        return make_sampler(*chain, **more)

    monkeypatch.setattr(runs, "make_sampler", noting)
    ran = main_("bench", "--model", str(copy), "--out", str(out), *few, "--contexts", "--top-k", "7")
    assert ran.code == 0
    assert "sampling as the model recommends: temperature 0.6, top-p 0.9\n" in ran.err
    assert "sampling above temperature 0: top-p 0.9, top-k 7, verified by block" in ran.out
    assert of_mlx_lm == {((0.0, 1.0, 0.0), ("top_k", 0)), ((0.6, 0.9, 0.0), ("top_k", 7))}
    report = json.loads((out / "report.json").read_text())
    assert {row["temperature"] for row in report["speed"]} == {0.0, 0.6}
    assert "above temperature 0: top-p 0.9, top-k 7" in (out / "report.html").read_text()


def test_what_the_command_line_says_goes_before_what_a_model_recommends():
    advice = {"temperature": 0.6, "top_p": 0.9, "top_k": 5}
    cases: dict[tuple[str, ...], tuple[object, ...]] = {
        (): ((0.0, 0.6), 0.9, 5, 0.0),
        ("--temps", "0", "1"): ((0.0, 1.0), 0.9, 5, 0.0),
        ("--top-p", "1", "--top-k", "0", "--min-p", "0.1"): ((0.0, 0.6), 1.0, 0, 0.1),
        ("--temps", "0"): ((0.0,), 1.0, 0, 0.0),
        ("--synthetic-acceptance", "0.5"): ((0.0,), 1.0, 0, 0.0),
    }
    parser = argparse.ArgumentParser()
    command.register(parser.add_subparsers())
    for words, expected in cases.items():
        arguments = parser.parse_args(["bench", *words])
        found = command.settings_of(arguments, advice)
        assert (found.temperatures, found.top_p, found.top_k, found.min_p) == expected, words
    assert command.settings_of(parser.parse_args(["bench"]), {}).temperatures == (0.0, 0.7)


def test_a_report_that_cannot_be_written_is_printed_still(bench: Cli, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mlxmtp.bench.run.write_report", full)
    ran = bench()
    assert ran.code == 1
    assert "to mlx-lm" in ran.out
    assert ran.err.endswith("No space left on device\n")


def test_the_same_command_measures_nothing_again(bench: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """And another one is refused in the same folder."""
    first = bench("--json")
    assert json.loads(first.out) == json.loads((tmp_path / "out" / "report.json").read_text())
    monkeypatch.setattr(Measurement, "measure", lambda *_: pytest.fail("measured again"))
    again = bench("--json")
    assert again.code == 0
    assert json.loads(again.out) == json.loads(first.out)
    other = bench("--tokens", "9")
    assert (other.code, other.out) == (2, "")
    assert "of another benchmark (settings tokens: 8 there, 9 now); give another --out" in other.err


def test_control_c_keeps_what_was_measured_and_says_how_to_go_on(
    bench: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    real, units = Measurement.measure, []

    def interrupted(self: Measurement, unit: BenchUnit) -> dict[str, Any]:
        units.append(unit.key)
        if len(units) == 2:
            raise KeyboardInterrupt
        return real(self, unit)

    monkeypatch.setattr(Measurement, "measure", interrupted)
    ran = bench()
    assert (ran.code, ran.out) == (130, "")
    assert f"1 of 2 measurements are kept in {tmp_path / 'out'}; the same command goes on from there" in ran.err
    assert not json.loads((tmp_path / "out" / "report.json").read_text())["complete"]
    ran = bench("--json")
    assert len(units) == 3
    assert units[2] == units[1], "it goes on with what was interrupted"
    assert json.loads(ran.out)["complete"]


def test_a_model_without_a_head(main_: Cli, raw_checkpoint: Callable[..., Path], tmp_path: Path):
    model = str(raw_checkpoint("qwen3_5", dtype="float32", positions=512, layers=2, interval=2, head=False))
    ran = main_("bench", "--model", model, "--out", str(tmp_path), *FEW, "--contexts", "--json")
    assert ran.code == 0
    assert "mlxmtp: warning: no MTP: " in ran.err
    report = json.loads(ran.out)
    assert [row["arm"] for row in report["speed"]] == ["mlx-lm", "plain"]
    assert report["auto"] == []
    assert any("no MTP" in note for note in report["notes"])


def test_no_mtp_measures_plain_decoding(bench: Cli):
    ran = bench("--no-mtp", "--json")
    assert [row["arm"] for row in json.loads(ran.out)["speed"]] == ["mlx-lm", "plain"]
    assert "MTP was switched off" in ran.err


def test_a_synthetic_acceptance(bench: Cli):
    report = json.loads(bench("--synthetic-acceptance", "1", "--json").out)
    depth = next(row for row in report["speed"] if row["arm"] == "depth 1")
    assert depth["acceptance"] == [1.0]
    assert report["synthetic"] == 1.0


@pytest.mark.exhaustive
def test_prompts_of_a_file(main_: Cli, model: str, tmp_path: Path):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"workload": "mine", "turns": ["hello"]}\n{"workload": "yours", "turns": ["hi"]}\n')
    options = ("--tokens", "8", "--repeats", "1", "--depths", "--temps", "0", "1", "--contexts", "--json")
    ran = main_("bench", "--model", model, "--prompts", str(file), "--out", str(tmp_path / "out"), *options)
    rows = json.loads(ran.out)["speed"]
    assert [(row["workload"], row["temperature"]) for row in rows[::3]] == [
        ("mine", 0.0), ("yours", 0.0), ("mine", 1.0), ("yours", 1.0),
    ]  # fmt: skip
    assert {row["arm"] for row in rows} == {"mlx-lm", "plain", "auto"}


def test_malformed_prompts_are_refused_before_a_model_is_loaded(main_: Cli, tmp_path: Path):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"workload": "mine", "turns": ["hello"]}\n{"workload"\n')
    ran = main_("bench", "--model", "maker/absent", "--prompts", str(file))
    assert_refused(ran, f"{file}, line 2: not JSON")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--model", "/absent/model"), "/absent/model"),
        (("--workload", "cooking"), "no workload 'cooking'; expected one of ordering,"),
        (("--synthetic-acceptance", "2"), "expected a number from 0 to 1"),
        (("--synthetic-acceptance", "0.5", "--temps", "0.7"), "leave --temps out"),
        (("--temps", "0", "1e-9"), "--temps: temperature is 1e-09; expected 0 (greedy) or at least 1e-6"),
        (("--top-p", "2", "--model", "maker/absent"), "top_p is 2.0; expected a number in (0, 1]"),
        (("--compare", "/absent/a", "/absent/b"), "expected a report of `mlxmtp bench`"),
    ],
)
def test_bad_input_is_one_line(main_: Cli, options: tuple[str, ...], said: str):
    assert_refused(main_("bench", *options), said)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--tokens", "3"), "expected a whole number of at least 8"),
        (("--contexts", "4x"), "expected a whole number"),
        (("--contexts", "0"), "expected tokens as 4096 or 4k"),
        (("--depths", "17"), "expected a whole number from 0"),
        (("--depths", "1", "auto"), "expected a whole number; auto is measured beside the fixed depths"),
    ],
)
def test_options_that_argparse_refuses(main_: Cli, options: tuple[str, ...], said: str):
    ran = main_("bench", *options)
    assert (ran.code, ran.out) == (2, "")
    assert said in ran.err


@pytest.mark.exhaustive
def test_two_reports(bench: Cli, main_: Cli, tmp_path: Path):
    assert bench().code == 0
    out, both = str(tmp_path / "out"), tmp_path / "both"
    ran = main_("bench", "--compare", out, out, "--out", str(both))
    assert ran.code == 0
    assert "math at 0, depth 1" in ran.out
    assert "+0.0%" in ran.out
    assert json.loads((both / "compare.json").read_text())["conditions"] == {}
    assert "<svg" in (both / "compare.html").read_text()
    assert json.loads(main_("bench", "--compare", out, out, "--json").out)["arms"]


@pytest.mark.parametrize(("seconds", "said"), [(12.4, "12 s"), (89, "89 s"), (150, "2 min"), (7200, "2.0 h")])
def test_a_time_to_wait(seconds: float, said: str):
    assert command.duration(seconds) == said


@pytest.mark.parametrize(("text", "tokens"), [("4096", 4096), ("4k", 4096), ("1K", 1024), ("7", 7)])
def test_a_number_of_tokens(text: str, tokens: int):
    assert options.tokens(text) == tokens
