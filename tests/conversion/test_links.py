"""What is copied into a new model: the model's own files, and nothing that a link in its folder leads to."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mlxmtp.conversion.attach import attach
from mlxmtp.conversion.convert import convert
from mlxmtp.errors import CheckpointError
from tests.within import within


def test_a_link_out_of_the_folder_is_not_followed(raw_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    original = raw_checkpoint("qwen3_5")
    secret = tmp_path / "secret.txt"
    secret.write_text("TOP-SECRET")
    for name, source in (("convert", original), ("attach", raw_checkpoint("qwen3_5", head=False))):
        model = Path(shutil.copytree(source, tmp_path / name))
        (model / "tokenizer_notes.txt").symlink_to(secret)
        out = tmp_path / f"{name}-out"
        with pytest.raises(CheckpointError, match=rf"tokenizer_notes.txt is a link to {secret}, outside of the model"):
            convert(model, out) if name == "convert" else attach(model, str(original), out=out)
        assert not out.exists(), name
        (model / "tokenizer_notes.txt").unlink()
        (model / "inside.txt").write_text("ours")
        (model / "tokenizer_notes.txt").symlink_to("inside.txt")
        convert(model, out) if name == "convert" else attach(model, str(original), out=out)
        assert (out / "tokenizer_notes.txt").read_text() == "ours", name
        assert not (out / "tokenizer_notes.txt").is_symlink(), name


def test_a_link_to_a_snapshot_of_the_hub_cache_is_that_snapshot(
    raw_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    """Its files are links into the folder of their repo."""
    repo = tmp_path / "models--maker--model"
    blobs, snapshot = repo / "blobs", repo / "snapshots" / "0123abcd"
    shutil.copytree(raw_checkpoint("qwen3_5"), blobs)
    snapshot.mkdir(parents=True)
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(file)
    (tmp_path / "mymodel").symlink_to(snapshot)
    assert convert(tmp_path / "mymodel", tmp_path / "out").head_bytes


def test_weights_may_be_elsewhere(raw_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    model = Path(shutil.copytree(raw_checkpoint("qwen3_5"), tmp_path / "model"))
    (model / "model.safetensors").rename(tmp_path / "big.safetensors")
    (model / "model.safetensors").symlink_to(tmp_path / "big.safetensors")
    assert convert(model, tmp_path / "out").head_bytes


def test_files_that_a_conversion_keeps(raw_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    model = Path(shutil.copytree(raw_checkpoint("qwen3_5"), tmp_path / "model"))
    kept = ("chat_template.json", "additional_chat_templates/tool_use.jinja", "x.tiktoken")
    dropped = ("._x.tiktoken", "notes.txt", "tokenizer/inside.txt")
    for name in (*kept, *dropped):
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_text("{}")
    convert(model, tmp_path / "out")
    assert [(tmp_path / "out" / name).exists() for name in (*kept, *dropped)] == [True] * 3 + [False] * 3
    os.mkfifo(model / "vocab.txt")
    with within(20), pytest.raises(CheckpointError, match="not a regular file"):
        convert(model, tmp_path / "other")
