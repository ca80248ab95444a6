"""A Linux machine where mlxmtp was installed without a backend of MLX: every command says what to install."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlxmtp.checkpoints.checkpoint import DEMO
from mlxmtp.cli import COMMANDS
from mlxmtp.machine import missing_backend
from tests.cli.conftest import ROOT

ARGUMENTS: dict[str, list[str]] = {
    "serve": ["--port", "0"],
    "generate": ["--prompt", "x"],
    "bench": [],
    "doctor": [],
    "report": [],
    "inspect": [str(DEMO)],
    "convert": [str(DEMO), "no-such-folder"],
    "attach": [str(DEMO), "--from", str(DEMO)],
    "pull": ["owner/name"],
}
NEEDS_NONE = {"connect", "chat", "completion", "listing", "remove"}
"""`chat` draws on a terminal, and shows the message of its engine's process there; the others never use MLX."""


@pytest.mark.process
def test_every_command_says_what_to_install(tmp_path: Path) -> None:
    assert ARGUMENTS.keys() | NEEDS_NONE == {module.__name__.rpartition(".")[2] for module in COMMANDS}
    package = tmp_path / "path" / "mlx"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "core.py").write_text('raise ImportError("libmlx.so: cannot open shared object file")')
    environment = os.environ | {"PYTHONPATH": str(package.parent), "HF_HUB_OFFLINE": "1"}
    running = {
        name: subprocess.Popen(
            [sys.executable, "-m", "mlxmtp", name, *arguments],
            env=environment, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for name, arguments in ARGUMENTS.items()
    }  # fmt: skip
    for name, process in running.items():
        said, _ = process.communicate(timeout=120)
        assert process.returncode == (1 if name == "doctor" else 2), (name, said)
        assert "Traceback" not in said, (name, said)
        assert said.count("MLX cannot be imported (libmlx.so: cannot open shared object file); ") == 1, (name, said)
        assert "install" in said, (name, said)
    assert not (ROOT / "no-such-folder").exists()


def test_other_failures_of_an_import_are_not_explained_away() -> None:
    for error in (ImportError("libz.so: not there"), ModuleNotFoundError("No module named 'x'", name="x")):
        assert missing_backend(error) is error
    assert "install" in str(missing_backend(ModuleNotFoundError("No module named 'mlx'", name="mlx")))
