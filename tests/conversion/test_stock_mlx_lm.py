"""Stock mlx-lm loads what convert writes, and finds in it what its own converter would have written."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import mlx_lm
import pytest
from mlx.utils import tree_flatten

from mlxmtp.checkpoints import list_tensors, open_checkpoint, writer
from mlxmtp.conversion.convert import Quantization, convert
from mlxmtp.targets import load_target
from tests import tiny
from tests.comparing import assert_equal, assert_exact
from tests.grids import grid

Checkpoints = Callable[..., Path]
IDS = mx.array([[5, 9, 3, 200, 17, 11]])
PACKINGS = {
    "whole": None,
    "affine": Quantization(),
    "affine-3-32": Quantization(bits=3, group_size=32),
    "mxfp4": Quantization("mxfp4"),
    "nvfp4": Quantization("nvfp4"),
    "mxfp8": Quantization("mxfp8"),
}


def runnable(kind: tiny.Kind, packing: Quantization | None) -> str:
    """On the CPU backend, gather_mm knows experts in float32 only, and gather_qmm packed ones in any dtype."""
    return "float32" if tiny.is_moe(kind) and packing is None else "bfloat16"


def stock(folder: Path) -> tuple[dict[str, mx.array], mx.array]:
    """What mlx-lm loads: parameters, and the logits of a few tokens."""
    model, _ = mlx_lm.load(str(folder))
    return dict(tree_flatten(model.parameters())), model(IDS)


def assert_same_model(one: Path, other: Path) -> None:
    (weights, logits), (expected_weights, expected_logits) = stock(one), stock(other)
    assert_equal(weights, expected_weights)
    assert mx.array_equal(logits, expected_logits)


def config_of(folder: Path) -> dict[str, object]:
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize(
    ("kind", "how"),
    grid(
        ["qwen3_5", "qwen3_5_moe", "qwen3_next"],
        PACKINGS,
        default=lambda kind, how: kind == "qwen3_5_moe" or how == "affine",
    ),
)
def test_the_trunk_is_what_mlx_lm_converts(
    raw_checkpoint: Checkpoints, tmp_path: Path, kind: tiny.Kind, how: str
) -> None:
    """Its `quantization` too, with the entries of routers, which mlx-lm keeps at 8 bits."""
    packing = PACKINGS[how]
    raw = raw_checkpoint(kind, dtype=runnable(kind, packing))
    ours = convert(raw, tmp_path / "ours", quantization=packing).folder
    options = {"q_mode": packing.mode, "q_bits": packing.bits, "q_group_size": packing.group_size} if packing else {}
    mlx_lm.convert(str(raw), str(tmp_path / "theirs"), quantize=packing is not None, **options)
    assert_same_model(ours, tmp_path / "theirs")
    config, expected = config_of(ours), config_of(tmp_path / "theirs")
    assert config.pop("mtp_head")
    assert config == expected
    assert ("quantization" in config) == (packing is not None)


@pytest.mark.parametrize("how", ["whole", "affine", "nvfp4"])
@pytest.mark.parametrize("kind", ["qwen3_5", "qwen3_5_moe"])
def test_text_only_types_become_the_ones_that_mlx_lm_has(
    raw_checkpoint: Checkpoints, tmp_path: Path, kind: tiny.Kind, how: str
) -> None:
    """mlx-lm itself cannot convert these: held against the same numbers in the layout that it can."""
    one, other = (raw_checkpoint(name, dtype=runnable(kind, PACKINGS[how])) for name in (f"{kind}_text", kind))
    made = [convert(raw, tmp_path / raw.name, quantization=PACKINGS[how]).folder for raw in (one, other)]
    assert_same_model(*made)
    assert config_of(made[0])["model_type"] == kind


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", ["qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_next"])
def test_logits_are_those_of_the_source(
    raw_checkpoint: Checkpoints, tmp_path: Path, kind: tiny.Kind, tied: bool
) -> None:
    raw = raw_checkpoint(kind, dtype=runnable(kind, None), tied=tied)
    _, logits = stock(convert(raw, tmp_path / "made").folder)
    assert mx.array_equal(logits, load_target(open_checkpoint(raw)).model(IDS))


def test_a_width_that_no_group_divides_stays_whole_in_trunk_and_head(
    raw_checkpoint: Checkpoints, tmp_path: Path
) -> None:
    raw = raw_checkpoint("qwen3_5", mlp=96)
    made = convert(raw, tmp_path / "made", quantization=Quantization()).folder
    mlx_lm.convert(str(raw), str(tmp_path / "theirs"), quantize=True)
    assert_same_model(made, tmp_path / "theirs")
    packed = [name.removesuffix(".scales") for name in list_tensors(made) if name.endswith(".scales")]
    assert {"mtp.layers.0.mlp.up_proj", "mtp.fc"} <= set(packed)
    assert not [name for name in packed if name.endswith("mlp.down_proj")]
    assert_exact(made)


@pytest.mark.parametrize("packing", [None, Quantization()], ids=["whole", "quantised"])
def test_several_shards_are_one_model(
    raw_checkpoint: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packing: Quantization | None
) -> None:
    raw = raw_checkpoint("qwen3_5_moe", dtype="float32")
    one = convert(raw, tmp_path / "one", quantization=packing).folder
    monkeypatch.setattr(writer, "MAX_SHARD_BYTES", 60_000)
    many = convert(raw, tmp_path / "many", quantization=packing).folder
    assert_same_model(many, one)
    assert (many / "mtp.safetensors").read_bytes() == (one / "mtp.safetensors").read_bytes()

    index = json.loads((many / "model.safetensors.index.json").read_text())
    files = sorted(many.glob("model*.safetensors"))
    assert len(files) > 3
    assert [file.name for file in files] == [
        f"model-{i + 1:05}-of-{len(files):05}.safetensors" for i in range(len(files))
    ]
    stored = {name: (file.name, w) for file in files for name, w in mx.load(str(file)).items()}
    assert index["weight_map"] == {name: file for name, (file, _) in stored.items()}
    assert index["metadata"]["total_size"] == sum(w.nbytes for _, w in stored.values())
    for file in files:
        sizes = [w.nbytes for where, w in stored.values() if where == file.name]
        assert sum(sizes) <= 60_000 or len(sizes) == 1, file.name


@pytest.mark.parametrize("kind", ["qwen3_5", "qwen3_next"])
def test_the_side_car_is_nothing_to_mlx_lm(raw_checkpoint: Checkpoints, tmp_path: Path, kind: tiny.Kind) -> None:
    made = convert(raw_checkpoint(kind, dtype="float32"), tmp_path / "made").folder
    alone = Path(shutil.copytree(made, tmp_path / "alone", ignore=shutil.ignore_patterns("mtp.safetensors")))
    assert (made / "mtp.safetensors").exists()
    assert_same_model(made, alone)
    assert not [name for name in stock(made)[0] if "mtp" in name]
