"""Block-scaled FP8 checkpoints are the bfloat16 ones of the same numbers, loaded and converted."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlxmtp.checkpoints import dequantise_fp8, list_tensors, open_checkpoint
from mlxmtp.conversion.attach import attach
from mlxmtp.conversion.convert import Quantization, convert
from mlxmtp.errors import CheckpointError
from mlxmtp.targets import load_target
from tests import tiny
from tests.comparing import assert_equal, assert_exact, head_of, trunk_of, turn
from tests.grids import grid
from tests.targets.every_model import tiny_config
from tests.targets.sweep import write_checkpoint

Checkpoints = Callable[..., Path]
SIZES: dict[str, Any] = {"vocab": 16, "hidden": 192, "mlp": 320, "moe_mlp": 192}
"""No matrix fills its blocks; the halves of fused experts share one."""
CASES: list[tuple[tiny.Kind, dict[str, Any], tiny.Scales]] = [
    ("qwen3_5", {}, "BF16"),
    ("qwen3_5", {}, "F32"),
    ("qwen3_5", {}, "F8_E8M0"),
    ("qwen3_5_text", {}, "BF16"),
    ("qwen3_5_moe", {}, "BF16"),
    ("qwen3_5_moe", {"head_experts": "per_expert"}, "F32"),
    ("qwen3_5_moe", {"experts": "per_expert"}, "BF16"),
    ("qwen3_next", {}, "BF16"),
]


@pytest.mark.parametrize(("kind", "experts", "scales"), CASES)
def test_trunk_and_head_are_the_numbers_multiplied_out(
    raw_checkpoint: Checkpoints, tmp_path: Path, kind: tiny.Kind, experts: dict[str, str], scales: tiny.Scales
) -> None:
    fp8, whole = tiny.fp8_twins(raw_checkpoint(kind, **experts, **SIZES), tmp_path, scales=scales)
    assert {info.dtype for info in list_tensors(fp8).values()} == {"F8_E4M3", scales, "BF16"}
    assert_equal(trunk_of(fp8), trunk_of(whole))
    assert_equal(head_of(fp8), head_of(whole))


@pytest.mark.parametrize("part", ["trunk", "head"])
def test_either_part_may_be_whole(raw_checkpoint: Checkpoints, tmp_path: Path, part: str) -> None:
    fp8, whole = tiny.fp8_twins(raw_checkpoint("qwen3_5", **SIZES), tmp_path, **{part: False})
    assert_equal(trunk_of(fp8), trunk_of(whole))
    assert_equal(head_of(fp8), head_of(whole))


def test_both_say_the_same(raw_checkpoint: Checkpoints, tmp_path: Path) -> None:
    fp8, whole = tiny.fp8_twins(raw_checkpoint("qwen3_5", **SIZES), tmp_path)
    assert turn(fp8) == turn(whole)
    assert_exact(fp8)


@pytest.mark.parametrize(
    ("kind", "packing"),
    grid(
        ["qwen3_5", "qwen3_5_moe", "qwen3_next"],
        [None, Quantization()],
        default=lambda kind, packing: packing is None or kind == "qwen3_5",
    ),
)
def test_converting_leaves_no_fp8(
    raw_checkpoint: Checkpoints, tmp_path: Path, kind: tiny.Kind, packing: Quantization | None
) -> None:
    twins = tiny.fp8_twins(raw_checkpoint(kind, **SIZES), tmp_path)
    made, expected = (convert(twin, tmp_path / f"mlx-{twin.name}", quantization=packing).folder for twin in twins)
    assert not [n for n, info in list_tensors(made).items() if "scale_inv" in n or info.dtype.startswith("F8")]
    for file in ("model.safetensors", "mtp.safetensors"):
        assert (made / file).read_bytes() == (expected / file).read_bytes(), file
    config, plain = (json.loads((folder / "config.json").read_text()) for folder in (made, expected))
    assert config.pop("mtp_head") | {"source": "bf16"} == plain.pop("mtp_head")
    assert config == plain
    assert ("quantization_config" in config) == bool(packing)
    if packing or kind == "qwen3_5":  # gather_mm knows no bfloat16 on CPU
        assert_exact(made)


def test_the_format_is_gone_where_the_text_config_states_it(raw_checkpoint: Checkpoints, tmp_path: Path) -> None:
    fp8, _ = tiny.fp8_twins(raw_checkpoint("qwen3_5", **SIZES), tmp_path)
    config = json.loads((fp8 / "config.json").read_text())
    config["text_config"]["quantization_config"] = config.pop("quantization_config")
    tiny.write_json(fp8 / "config.json", config)
    for packing in (None, Quantization()):
        made = convert(fp8, tmp_path / f"mlx-{packing is None}", quantization=packing).folder
        assert "activation_scheme" not in (made / "config.json").read_text()


def test_a_head_is_attached_from_an_fp8_repo(
    raw_checkpoint: Checkpoints, mlx_conversion: Checkpoints, tmp_path: Path
) -> None:
    fp8, whole = tiny.fp8_twins(raw_checkpoint("qwen3_5_moe", **SIZES), tmp_path)
    stripped = [tiny.mlx_conversion(whole, tmp_path / name, bits=4, head="none") for name in ("one", "two")]
    for folder, original in zip(stripped, (fp8, whole), strict=True):
        attach(folder, str(original))
    assert_equal(head_of(stripped[0]), head_of(stripped[1]))


@pytest.mark.parametrize("part", ["model.language_model.layers.0.mlp.down_proj", "mtp.fc"])
def test_scales_that_do_not_fit_are_refused(raw_checkpoint: Checkpoints, tmp_path: Path, part: str) -> None:
    fp8, _ = tiny.fp8_twins(raw_checkpoint("qwen3_5", **SIZES), tmp_path)
    scales = f"{part}.weight_scale_inv"
    weights = tiny.load_weights(fp8)
    of_smaller_blocks = weights | {scales: mx.repeat(mx.repeat(weights[scales], 2, axis=0), 2, axis=1)}
    alone = {name: value for name, value in weights.items() if name != f"{part}.weight"}
    for damaged, says in ((of_smaller_blocks, "one for each 128 x 128 block"), (alone, "has no weight beside it")):
        tiny.save_weights(fp8, damaged, made_by="pt")
        with pytest.raises(CheckpointError, match=says):
            head_of(fp8)


def test_scales_of_whole_matrices(tmp_path: Path) -> None:
    """Mistral's FP8 has one scale for each matrix; mlx-lm multiplies the bytes themselves by it."""
    values = mx.array([[1.0, -2.0, 0.5, 416.0], [0.0, 3.5, -0.25, 8.0]])
    cases = {"[]": mx.array(0.5), "[1]": mx.array([0.5]), "[1, 1]": mx.array([[0.5]])}
    for shape, scale in cases.items():
        weights = {"a.weight": mx.to_fp8(values), "a.weight_scale_inv": scale, "b.weight": values}
        found = dequantise_fp8(weights)
        assert found.keys() == {"a.weight", "b.weight"}, shape
        assert found["a.weight"].tolist() == (values * 0.5).tolist(), shape
    experts = {"e": mx.to_fp8(mx.stack([values, values])), "e_scale_inv": mx.array([2.0, 4.0]).reshape(2, 1, 1)}
    assert dequantise_fp8(experts)["e"].tolist() == [(values * 2).tolist(), (values * 4).tolist()]
    write_checkpoint("ministral3", tmp_path / "float")
    plain = {name: w.astype(mx.bfloat16) for name, w in tiny.load_weights(tmp_path / "float").items()}
    projections = [name for name in plain if "_proj." in name]
    packed = {name: mx.to_fp8(plain[name] * 8) for name in projections}
    scales = {f"{name}_scale_inv": mx.array(0.125) for name in projections}
    rounded = {name: (mx.from_fp8(w, dtype=mx.float32) / 8).astype(mx.bfloat16) for name, w in packed.items()}
    logits = []
    for name, weights in {"fp8": plain | packed | scales, "rounded": plain | rounded}.items():
        tiny.save_weights(tmp_path / name, weights, made_by="pt")
        tiny.write_json(tmp_path / name / "config.json", tiny_config("ministral3"))
        target = load_target(open_checkpoint(tmp_path / name))
        logits.append(target.forward(mx.array([[3, 4, 5]]), target.make_cache())[0])
    assert mx.array_equal(*logits)


def test_mxfp8_stays_as_it_is() -> None:
    weight, scales = mx.zeros((4, 64), mx.uint8), mx.full((4, 2), 127, mx.uint8)
    found = dequantise_fp8({"a.weight": weight, "a.weight_scale_inv": scales})
    assert found["a.weight"] is weight
    assert found["a.weight_scale_inv"] is scales
