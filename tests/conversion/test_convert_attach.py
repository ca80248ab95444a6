"""A head that goes through convert, attach and back is the same head, and stock mlx-lm loads what was written."""

import shutil
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import mlx_lm
import pytest

from mlxmtp import GenerationOptions, load
from mlxmtp.checkpoints import open_checkpoint
from mlxmtp.checkpoints.attached import attached_folder
from mlxmtp.conversion.attach import attach
from mlxmtp.conversion.convert import Quantization, convert
from mlxmtp.conversion.inspect import inspect
from mlxmtp.errors import CheckpointError, HeadError
from mlxmtp.targets import load_target
from tests import tiny
from tests.comparing import assert_equal, head_of
from tests.grids import cases
from tests.hub import Hub

Checkpoints = Callable[..., Path]


@pytest.mark.parametrize("kind", cases(["qwen3_5", "qwen3_5_text"], default=["qwen3_5"]))
def test_a_converted_head_and_trunk_are_the_sources(raw_checkpoint: Checkpoints, tmp_path: Path, kind: str) -> None:
    raw = raw_checkpoint(kind)
    done = convert(raw, tmp_path / "mlx")
    assert_equal(head_of(done.folder), head_of(raw))
    stock, _ = mlx_lm.load(str(done.folder))
    ids = mx.array([[5, 9, 3]])
    assert mx.array_equal(stock(ids), load_target(open_checkpoint(raw)).model(ids))
    tokens = load(raw).generate([5, 9, 3], GenerationOptions(max_tokens=16)).tokens
    assert load(done.folder).generate([5, 9, 3], GenerationOptions(max_tokens=16)).tokens == tokens


def test_attach_restores_what_convert_wrote(raw_checkpoint: Checkpoints, tmp_path: Path) -> None:
    raw = raw_checkpoint("qwen3_5")
    whole = convert(raw, tmp_path / "whole", quantization=Quantization()).folder
    stripped = Path(shutil.copytree(whole, tmp_path / "stripped", ignore=shutil.ignore_patterns("mtp.safetensors")))
    assert not inspect(stripped).speculates
    attach(stripped, str(raw))
    assert (stripped / "mtp.safetensors").read_bytes() == (whole / "mtp.safetensors").read_bytes()
    found = inspect(stripped).head
    assert found is not None
    assert (found.place, found.norms, found.weights.quantization) == (
        "side-car",
        "shifted",
        "8-bit affine, groups of 64",
    )
    with pytest.raises(CheckpointError, match="has a head already"):
        attach(stripped, str(raw))


def test_attach_from_the_hub_fetches_the_head_alone(
    hub: Hub, data: Path, raw_checkpoint: Checkpoints, mlx_conversion: Checkpoints
) -> None:
    raw = raw_checkpoint("qwen3_5", shards=3)
    hub.add("maker/original", raw)
    hub.add("community/stripped", mlx_conversion(raw, head="none"))
    done = attach("community/stripped", "maker/original")
    repo, revision = open_checkpoint("community/stripped").repo, open_checkpoint("community/stripped").revision
    assert repo is not None
    assert revision is not None
    assert done.file.parent == attached_folder(repo, revision)
    assert_equal(head_of("community/stripped"), head_of(raw))
    ranges = [request for request in hub.requests if request.repo == "maker/original" and request.range]
    assert hub.sent("maker/original") < sum(file.stat().st_size for file in raw.glob("*.safetensors")) / 2
    assert ranges
    assert not list((data / "partial").iterdir())


def test_a_head_of_another_model_is_refused(
    raw_checkpoint: Checkpoints, mlx_conversion: Checkpoints, tmp_path: Path
) -> None:
    stripped = mlx_conversion(raw_checkpoint("qwen3_5"), head="none")
    other = tiny.raw_checkpoint(tmp_path / "other", "qwen3_5", seed=7)
    with pytest.raises(HeadError, match=r"made from another model|not the same model"):
        attach(stripped, str(other))


def test_an_existing_destination_is_left_alone(raw_checkpoint: Checkpoints, tmp_path: Path) -> None:
    (tmp_path / "dest").mkdir()
    with pytest.raises(CheckpointError, match="exists already"):
        convert(raw_checkpoint("qwen3_5"), tmp_path / "dest")
