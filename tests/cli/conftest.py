"""Fixtures that run the command line, in this process with a scripted engine or as a process."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

import mlxmtp
from mlxmtp.cli import main, progress
from tests.checkpoints.conftest import hub
from tests.cli.fake import Engine

__all__ = ["hub"]

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str


def assert_refused(ran: Ran, *said: str, code: int = 2) -> None:
    """Assert that the program printed one line of error, and nothing else."""
    assert (ran.code, ran.out) == (code, ""), ran
    assert ran.err.startswith("mlxmtp: "), ran
    assert ran.err.count("\n") == 1, ran
    for words in said:
        assert words in ran.err


@pytest.fixture(scope="session")
def raw(raw_checkpoint: Callable[..., Path]) -> Path:
    """A checkpoint with its head, in three shards. Read only."""
    return raw_checkpoint("qwen3_5", shards=3)


@pytest.fixture(scope="session")
def stripped(raw: Path, mlx_conversion: Callable[..., Path]) -> Path:
    """A 4-bit conversion of `raw` without the head. Read only."""
    return mlx_conversion(raw, bits=4, head="none")


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """mlxmtp's own data folder."""
    for name in ("HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def main_(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """main_(*arguments) -> Ran: `mlxmtp` in this process."""

    def main_(*arguments: str) -> Ran:
        try:
            code = main(arguments)
        except SystemExit as ended:
            code = int(ended.code or 0)
        return Ran(code, *capsys.readouterr())

    return main_


@pytest.fixture
def run(main_: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ran]:
    """run(*arguments, engine=Engine()) -> Ran: the same with a scripted engine for every model."""

    def run(*arguments: str, engine: Engine | None = None) -> Ran:
        monkeypatch.setitem(vars(mlxmtp), "load", (engine or Engine()).load)
        return main_(*arguments)

    return run


@pytest.fixture
def generate(run: Callable[..., Ran]) -> Callable[..., Ran]:
    """generate(*arguments, engine=Engine()) -> Ran: `mlxmtp generate --prompt hi` with more arguments."""
    return lambda *arguments, engine=None: run("generate", "--prompt", "hi", *arguments, engine=engine)


@pytest.fixture
def program() -> Callable[..., subprocess.CompletedProcess[str]]:
    """program(*arguments) runs `python -m mlxmtp` as a process."""

    def program(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "mlxmtp", *arguments]
        return subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=120, **options)

    return program


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The progress display shows everything at once."""
    monkeypatch.setattr(progress, "PATIENCE_S", 0.0)
    monkeypatch.setattr(progress, "PAUSE_S", 0.0)


@pytest.fixture
def cli(main_: Callable[..., Ran]) -> Callable[..., Ran]:
    """cli(*arguments): `main_` with arguments that may be paths."""
    return lambda *arguments: main_(*map(str, arguments))


@pytest.fixture
def report(main_: Callable[..., Ran]) -> Callable[..., dict]:
    """report(model): the JSON of `inspect --json`."""
    return lambda model: json.loads(main_("inspect", str(model), "--json").out)


@pytest.fixture
def answer(main_: Callable[..., Ran]) -> Callable[..., dict]:
    """answer(model, *options): the JSON of `generate --json`."""

    def answer(model: str | Path, *options: str) -> dict:
        generate = ("generate", "--prompt", "hello", "--max-tokens", "24", "--json", "--model", str(model))
        return json.loads(main_(*generate, *options).out)

    return answer
