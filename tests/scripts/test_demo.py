"""`scripts/demo` in a prepared environment: a generation, and the comparison with plain decoding."""

import itertools
import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from mlxmtp import GenerationOptions
from mlxmtp.exactness.guarantee import Guarantee

REPO = Path(__file__).parents[2]


@pytest.fixture
def demo(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], raw_checkpoint: Callable[..., Path]
) -> Callable[..., tuple[int, str, str]]:
    """demo(*options, **checkpoint) -> exit code, standard output, standard error."""

    def demo(*options: str, **checkpoint: bool) -> tuple[int, str, str]:
        model = str(raw_checkpoint("qwen3_5", **checkpoint))
        monkeypatch.setattr(sys, "argv", ["demo", "--model", model, "--max-tokens", "12", *options])
        main: Callable[[], int] = runpy.run_path(str(REPO / "scripts" / "demo.py"))["main"]
        return main(), *capsys.readouterr()

    return demo


@pytest.mark.parametrize("options", [[], ["--temp", "1", "--seed", "3"]])
def test_the_same_tokens_beside_plain_decoding(demo, options):
    code, out, err = demo(*options)
    assert code == 0
    assert out.strip()
    for line in ("with MTP ", "plain ", "ratio ", "tokens    identical, all 12"):
        assert f"\n{line}" in err


def test_sampling_without_a_seed_promises_nothing(demo):
    code, _, err = demo("--temp", "1")
    assert code == 0
    assert "--seed makes them equal" in err


@pytest.mark.parametrize(
    ("promise", "depth", "code", "said"),
    [
        ("identical", None, 1, "please report it"),
        ("distribution", None, 0, "as near-ties may be"),
        ("identical", 9, 0, "as near-ties may be"),
    ],
)
def test_tokens_that_differ_are_a_fault_where_they_were_promised(monkeypatch, capsys, promise, depth, code, said):
    compare = runpy.run_path(str(REPO / "scripts" / "demo.py"))["compare"]
    runs = (SimpleNamespace(tokens=[number], stats=SimpleNamespace(decode_tps=1.0)) for number in itertools.count())
    monkeypatch.setitem(compare.__globals__, "measure", lambda *_, **__: next(runs))
    engine = SimpleNamespace(guarantee=Guarantee(promise, 8, 32))
    assert compare(engine, "x", GenerationOptions(depth=depth), raw=False) == code
    assert said in capsys.readouterr().err


def test_the_options_are_those_of_generate(demo):
    code, _, err = demo("--head", "nowhere")
    assert code == 2
    assert "nowhere" in err


def test_without_a_head_it_only_generates(demo):
    code, out, err = demo(head=False)
    assert (code, bool(out.strip())) == (0, True)
    assert "MTP     off: " in err
    assert "median" not in err


def test_json_is_that_of_generate(demo):
    code, out, err = demo("--json")
    assert (code, err) == (0, "")
    assert len(json.loads(out)["tokens"]) == 12


@pytest.mark.parametrize("script", ["scripts/demo", "scripts/test", ".ci/run"])
def test_scripts_can_be_run(script):
    assert os.access(REPO / script, os.X_OK)


@pytest.mark.parametrize(
    "script", [path.name for path in sorted(REPO.glob("scripts/*.py")) if "argparse" in path.read_text()]
)
def test_each_script_finds_what_it_needs(script):
    ran = subprocess.run([sys.executable, REPO / "scripts" / script, "--help"], capture_output=True, text=True)
    if "pip install" in ran.stderr:
        pytest.skip(ran.stderr.strip())
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith("usage: ")
