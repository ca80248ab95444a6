"""The package itself: its public names, its errors, and what it says where MLX is missing or incomplete."""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

import mlxmtp
from mlxmtp import machine
from mlxmtp.errors import BackendError, MlxmtpError

ROOT = Path(__file__).parents[1]
NO_LIBRARY = "libmlx.so: cannot open shared object file: No such file or directory"


@pytest.fixture
def unimported(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that has not used `mlxmtp.Engine` yet."""
    monkeypatch.delitem(vars(mlxmtp), "Engine", raising=False)


def test_every_public_name_is_there():
    for name in mlxmtp.__all__:
        assert getattr(mlxmtp, name) is not None
    assert set(dir(mlxmtp)) == set(mlxmtp.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Lucky'"):
        _ = mlxmtp.Lucky


def test_errors_have_one_base():
    for name in mlxmtp.__all__:
        if name.endswith("Error"):
            assert issubclass(getattr(mlxmtp, name), MlxmtpError)


@pytest.mark.usefixtures("unimported")
def test_missing_mlx(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlx.core", None)
    with pytest.raises(BackendError, match="pip install"):
        _ = mlxmtp.Engine


@pytest.mark.usefixtures("unimported")
def test_an_import_error_of_another_kind_stays_itself(monkeypatch):
    def broken(name: str) -> object:
        raise ImportError("libopenblas.so.0: cannot open shared object file", name="core")

    monkeypatch.setattr(machine, "import_module", broken)
    with pytest.raises(ImportError, match="libopenblas") as caught:
        _ = mlxmtp.Engine
    assert not isinstance(caught.value, BackendError)


@pytest.mark.skipif(sys.platform == "darwin", reason="on macOS mlx brings its backend")
def test_mlx_without_its_library_names_the_extra(tmp_path):
    """What a bare `pip install mlx` leaves on Linux: a folder `mlx` whose `core` cannot be loaded."""
    (tmp_path / "mlx").mkdir()
    (tmp_path / "mlx" / "__init__.py").touch()
    (tmp_path / "mlx" / "core.py").write_text(f"raise ImportError({NO_LIBRARY!r}, name='core')")
    ran = subprocess.run(
        [sys.executable, "-m", "mlxmtp", "generate", "--prompt", "hi"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith("mlxmtp: MLX cannot be imported")
    assert "pip install 'mlxmtp[cpu]'" in ran.stderr
    assert ran.stderr.count("\n") == 1


def test_version_has_one_source():
    try:
        installed = importlib.metadata.version("mlxmtp")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the package is not installed, only on the path")
    assert installed == mlxmtp.__version__
