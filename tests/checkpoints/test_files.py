"""What is said of folders and repos that are no model, or only part of one."""

from collections.abc import Callable
from pathlib import Path

import pytest

from mlxmtp.checkpoints import list_tensors, open_checkpoint
from mlxmtp.errors import CheckpointError
from tests import tiny


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny.raw_checkpoint(tmp_path / "model", "qwen3_5", shards=3)


def test_a_whole_model(model: Path) -> None:
    tensors = open_checkpoint(model).tensors
    assert tensors["mtp.fc.weight"].shape == (64, 128)
    assert tensors["mtp.fc.weight"].dtype == "BF16"
    assert len({info.file for info in tensors.values()}) == 3


def cut(model: Path) -> None:
    shard = max(model.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1])


def cut_in_the_header(model: Path) -> None:
    shard = max(model.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:100])


def not_a_header(model: Path) -> None:
    max(model.glob("*.safetensors")).write_bytes(b"\x08" + bytes(7) + b"[1, 2, 3" + bytes(8))


def empty_file(model: Path) -> None:
    max(model.glob("*.safetensors")).write_bytes(b"")


def shard_gone(model: Path) -> None:
    max(model.glob("*.safetensors")).unlink()


def shard_and_index_gone(model: Path) -> None:
    shard_gone(model)
    (model / "model.safetensors.index.json").unlink()


def no_weights(model: Path) -> None:
    for file in model.glob("*.safetensors*"):
        file.unlink()


def index_broken(model: Path) -> None:
    (model / "model.safetensors.index.json").write_text("{}")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (cut, "cut short"),
        (cut_in_the_header, "not a complete safetensors file"),
        (not_a_header, "header cannot be read"),
        (empty_file, "not a complete safetensors file"),
        (shard_gone, "missing model-00003-of-00003.safetensors"),
        (shard_and_index_gone, "missing model-00003-of-00003.safetensors"),
        (no_weights, "no model.*safetensors files"),
        (index_broken, "cannot be read as an index"),
    ],
)
def test_damaged_weights(model: Path, damage: Callable[[Path], None], says: str) -> None:
    damage(model)
    with pytest.raises(CheckpointError, match=says):
        list_tensors(model)


@pytest.mark.parametrize(
    ("config", "says"),
    [(None, "no config.json"), ("{", "not valid JSON"), ("[]", "no model_type"), ('{"a": 1}', "no model_type")],
)
def test_folders_that_are_no_model(tmp_path: Path, config: str | None, says: str) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(CheckpointError, match=says):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["no-such-folder", "./no/such", "/no/such/folder", "a/b/c"])
def test_names_of_nothing(name: str) -> None:
    with pytest.raises(CheckpointError, match="no such folder; expected"):
        open_checkpoint(name)


def test_a_repo_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The real client, against a port where nobody listens."""
    import huggingface_hub.constants as hub

    monkeypatch.setattr(hub, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match="cannot be downloaded from the Hub"):
        open_checkpoint("nobody/no-such-model")
