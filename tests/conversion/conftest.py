"""A stripped conversion and its original, on disk and on a Hub, and the command line to bring them together."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import mlx.core as mx
import pytest

from mlxmtp.cli import main
from mlxmtp.conversion.attach import attach
from mlxmtp.conversion.convert import convert
from mlxmtp.conversion.sources import SAMPLE
from tests import tiny
from tests.checkpoints.conftest import hub
from tests.comparing import contents
from tests.conversion.faults import ORIGINAL, SHARDS, STRIPPED, Attached, Run, attached
from tests.hub import Hub

__all__ = ["hub"]


@pytest.fixture(scope="session")
def original(raw_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four shards with an index: large matrices, what attach samples, the head, the rest. Read only."""
    raw, folder = raw_checkpoint("qwen3_5"), tmp_path_factory.mktemp("original")
    shards: list[dict[str, mx.array]] = [{} for _ in SHARDS]
    for name, value in tiny.load_weights(raw).items():
        kind = 2 if name.startswith("mtp.") else 1 if name.endswith(SAMPLE) else 0 if "embed" in name else 3
        shards[kind][name] = value
    for file, arrays in zip(SHARDS, shards, strict=True):
        mx.save_safetensors(str(folder / file), arrays, {"format": "pt"})
    where = {name: file for file, arrays in zip(SHARDS, shards, strict=True) for name in arrays}
    tiny.write_json(folder / "model.safetensors.index.json", {"weight_map": where})
    for file in raw.glob("*.json"):
        shutil.copy(file, folder)
    return folder


@pytest.fixture(scope="session")
def stripped(original: Path, mlx_conversion: Callable[..., Path]) -> Path:
    """An MLX conversion of `original` that lost the head. Read only."""
    return mlx_conversion(original, head="none")


@pytest.fixture
def trunk(stripped: Path, tmp_path: Path) -> Path:
    """A folder of its own to attach to."""
    return Path(shutil.copytree(stripped, tmp_path / "trunk"))


@pytest.fixture(scope="session")
def whole(original: Path, stripped: Path, tmp_path_factory: pytest.TempPathFactory) -> Attached:
    """What attach makes where nothing fails, from the folder `original`."""
    return attached(attach(stripped, str(original), out=tmp_path_factory.mktemp("whole") / "out").file.parent)


@pytest.fixture(scope="session")
def converted(original: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What convert makes of the folder `original`."""
    return contents(convert(original, tmp_path_factory.mktemp("converted") / "dest").folder)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """mlxmtp's own data folder."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return tmp_path / "data" / "mlxmtp"


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the client and we would have waited."""
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    return waited


@pytest.fixture
def models(hub: Hub, data: Path, original: Path, stripped: Path) -> Hub:
    """A Hub with both models; the stripped one is in the cache, and nothing of that is in the record."""
    hub.add(ORIGINAL, original)
    hub.add(STRIPPED, stripped)
    huggingface_hub.snapshot_download(STRIPPED)
    hub.requests.clear()
    return hub


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """The command line in this process: exit code and standard error."""

    def call(*arguments: Any) -> tuple[int, str]:
        capsys.readouterr()
        return main([str(one) for one in arguments]), capsys.readouterr().err

    return call
