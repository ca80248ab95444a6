"""`scripts/demo` in a prepared environment: a generation, and the comparison with plain decoding."""

import itertools
import json
import os
import re
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


@pytest.mark.exhaustive
def test_the_same_tokens_as_plain_decoding(demo):
    for options in ([], ["--temp", "1", "--seed", "3"]):
        code, out, err = demo(*options)
        assert code == 0, options
        assert out.strip(), options
        for line in ("with MTP ", "plain ", "ratio ", "tokens    identical, all 12"):
            assert f"\n{line}" in err, options


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
    assert code == 0
    assert not err or "warning: the head's first drafts" in err, "the model is random"
    assert len(json.loads(out)["tokens"]) == 12


@pytest.mark.parametrize("script", ["scripts/demo", "scripts/test", ".ci/run"])
def test_scripts_can_be_run(script):
    assert os.access(REPO / script, os.X_OK)


HELP = """
import runpy, sys
scripts, root = sys.argv[1:]
path = [entry for entry in sys.path if entry not in ("", root)]
for name in sys.stdin.read().split():
    for module, loaded in list(sys.modules.items()):
        file = str(getattr(loaded, "__file__", ""))
        if file.startswith((f"{root}/scripts", f"{root}/tests")):
            del sys.modules[module]
    sys.path[:], sys.argv[:] = [scripts, *path], [f"{scripts}/{name}", "--help"]
    print(f"== {name}", flush=True)
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as ended:
        print(f"ended with {ended.code!r}", flush=True)
"""
"""Runs each script's --help in one process, which begins each with the path that Python gives a script."""


@pytest.mark.process
def test_each_script_finds_what_it_needs(tmp_path):
    folder = REPO / "scripts"
    names = [path.name for path in sorted(folder.glob("*.py")) if "argparse" in path.read_text()]
    assert len(names) > 10
    ran = subprocess.run(
        [sys.executable, "-c", HELP, folder, REPO], cwd=tmp_path, input=" ".join(names), capture_output=True, text=True
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    _, *answers = re.split(r"^== ", ran.stdout, flags=re.MULTILINE)
    assert [answer.split()[0] for answer in answers] == names
    for answer in answers:
        if "pip install" not in answer:  # what it needs is not part of the environment
            assert answer.split()[1] == "usage:", answer
            assert answer.endswith(("ended with 0\n", "ended with None\n")), answer
