"""Ways to run the command line: in this process against a scripted engine, or as a process of its own."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

import mlxmtp
from mlxmtp.cli import main
from tests.cli.fake import Engine

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str


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
    """run(*arguments, engine=Engine()) -> Ran: the same, whatever the model, against a scripted engine."""

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
