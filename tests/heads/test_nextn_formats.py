"""GLM's and DeepSeek's `nextn` layer in block-scaled FP8, packed, and in the drafter folders of mlx-vlm."""

import gc
import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest

from mlxmtp.checkpoints import list_tensors, open_checkpoint
from mlxmtp.conversion.attach import attach
from mlxmtp.conversion.convert import Quantization, convert
from mlxmtp.targets import load_target
from tests import tiny
from tests.comparing import Weights, assert_equal, assert_exact, head_of, trunk_of, turn, unpacked_head_of
from tests.grids import cases, grid

pytestmark = pytest.mark.exhaustive

Checkpoints = Callable[..., Path]
VOCAB = 16  # few enough tokens that a random head is right now and then
FOUR_BITS = Quantization(bits=4, group_size=32)
# gather_mm knows bfloat16 experts only packed on the CPU backend: what is not packed is loaded, but not run.

# -- block-scaled FP8

SIZES: dict[str, Any] = {
    "vocab": VOCAB, "dtype": "bfloat16", "hidden": 192, "mlp": 320, "moe_mlp": 192, "q_lora": 192, "kv_lora": 192,
}  # fmt: skip
"""No matrix of the block fills its blocks of scales."""


@pytest.mark.parametrize("kind", tiny.NEXTN_KINDS)
def test_fp8_is_the_numbers_multiplied_out(nextn_checkpoint: Checkpoints, tmp_path: Path, kind: tiny.NextNKind) -> None:
    fp8, whole = tiny.fp8_twins(nextn_checkpoint(kind, **SIZES), tmp_path, scales="F32")
    stored = {name.partition("layers.3.")[2]: info.dtype for name, info in list_tensors(fp8).items()}
    assert stored["self_attn.o_proj.weight"] == stored["mlp.experts.0.up_proj.weight"] == "F8_E4M3"
    assert stored["eh_proj.weight"] == stored["mlp.gate.weight"] == stored["shared_head.head.weight"] == "BF16"
    assert_equal(trunk_of(fp8), trunk_of(whole))
    assert_equal(head_of(fp8), head_of(whole))


@pytest.mark.parametrize("part", ["trunk", "head"])
def test_either_part_may_be_whole(nextn_checkpoint: Checkpoints, tmp_path: Path, part: str) -> None:
    fp8, whole = tiny.fp8_twins(nextn_checkpoint("deepseek_v3", **SIZES), tmp_path, scales="F32", **{part: False})
    assert_equal(trunk_of(fp8), trunk_of(whole))
    assert_equal(head_of(fp8), head_of(whole))


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", cases(tiny.NEXTN_KINDS, default=("deepseek_v32",)))
def test_fp8_converted_and_attached_is_a_packed_model(
    nextn_checkpoint: Checkpoints, tmp_path: Path, kind: tiny.NextNKind
) -> None:
    twins = tiny.fp8_twins(nextn_checkpoint(kind, **SIZES), tmp_path, scales="F32")
    made, expected = (convert(twin, tmp_path / f"mlx-{twin.name}", quantization=FOUR_BITS).folder for twin in twins)
    for file in ("model.safetensors", "mtp.safetensors"):
        assert (made / file).read_bytes() == (expected / file).read_bytes(), file
    assert "activation_scheme" not in (made / "config.json").read_text()
    assert_exact(made)
    stripped = convert(
        nextn_checkpoint(kind, head=False, **SIZES), tmp_path / "stripped", quantization=FOUR_BITS
    ).folder
    attach(stripped, str(twins[0]))
    assert_equal(head_of(stripped), head_of(expected))


# -- packed heads


def rounded(head: Weights, bits: int) -> Weights:
    """A head with all its matrices packed and unpacked but the router, whose choice is not a linear layer's."""
    packed = {name: w for name, w in head.items() if w.ndim > 1 and not name.endswith("mlp.gate.weight")}
    parts = {name: mx.quantize(w, group_size=64, bits=bits) for name, w in packed.items()}
    return head | {
        name: mx.dequantize(*p, group_size=64, bits=bits).astype(head[name].dtype) for name, p in parts.items()
    }


@pytest.mark.parametrize(
    ("kind", "bits"),
    grid(tiny.NEXTN_KINDS, [4, 8], default=lambda kind, bits: (kind, bits) in (("deepseek_v32", 4), ("glm4_moe", 8))),
)
def test_a_packed_head_is_its_original_rounded(
    nextn_checkpoint: Checkpoints, tmp_path: Path, kind: tiny.NextNKind, bits: int
) -> None:
    sizes: dict[str, Any] = {"vocab": VOCAB, "dtype": "bfloat16", "nope": 64, "value": 64}
    raw = nextn_checkpoint(kind, **sizes)
    converted = convert(raw, tmp_path / "converted", quantization=FOUR_BITS, head_bits=bits).folder
    assert_equal(unpacked_head_of(converted), rounded(head_of(raw), bits))
    assert_exact(converted)
    attached = convert(
        nextn_checkpoint(kind, head=False, **sizes), tmp_path / "attached", quantization=FOUR_BITS
    ).folder
    attach(attached, str(raw), head_bits=bits)
    assert_equal(head_of(attached), head_of(converted))


# -- drafters of mlx-vlm

DRAFTERS = ("glm4_moe_lite", "glm_moe_dsa")


@pytest.mark.parametrize("kind", cases(DRAFTERS, default=DRAFTERS[1:]))
def test_a_drafter_is_the_head_of_its_original(
    nextn_checkpoint: Checkpoints, tmp_path: Path, kind: tiny.NextNKind
) -> None:
    raw = nextn_checkpoint(kind, vocab=VOCAB)
    trunk = convert(nextn_checkpoint(kind, vocab=VOCAB, head=False), tmp_path / "trunk").folder
    attach(trunk, str(tiny.nextn_drafter(raw, tmp_path / "drafter")))
    assert_equal(head_of(trunk), head_of(raw))
    assert turn(trunk) == turn(raw)


@pytest.mark.parametrize("kind", cases(DRAFTERS, default=DRAFTERS[:1]))
def test_a_packed_drafter_stays_packed(nextn_checkpoint: Checkpoints, tmp_path: Path, kind: tiny.NextNKind) -> None:
    """Its own copies of embedding and output matrix, rounded otherwise than the trunk's, stay with it."""
    sizes: dict[str, Any] = {"vocab": VOCAB, "dtype": "bfloat16", "nope": 64, "value": 64}
    raw = nextn_checkpoint(kind, **sizes)
    trunk = convert(nextn_checkpoint(kind, head=False, **sizes), tmp_path / "trunk", quantization=FOUR_BITS).folder
    attach(trunk, str(tiny.nextn_drafter(raw, tmp_path / "drafter", mode="affine-4")))
    last = "model.layers.3."
    copies = {"embed_tokens": f"{last}embed_tokens", "lm_head": f"{last}shared_head.head"}
    own = {f"layers.0.{name}.weight": tiny.load_weights(raw)[f"{stored}.weight"] for name, stored in copies.items()}
    assert_equal(unpacked_head_of(trunk), rounded(head_of(raw) | own, 4))
    config = json.loads((trunk / "config.json").read_text())
    assert {how["bits"] for how in config["mtp_head"]["quantization"].values()} == {4}
    assert_exact(trunk)


# -- memory


def test_quantising_leaves_no_projection_behind(nextn_checkpoint: Checkpoints) -> None:
    """`convert` packs a trunk whose latent attention is watched: what it replaces must go, or 2 GB of DeepSeek stay."""
    target = load_target(open_checkpoint(nextn_checkpoint("deepseek_v3")), lazy=True)
    attentions = [layer.self_attn for layer in target.model.layers]
    replaced = [weakref.ref(module) for one in attentions for module in (one.embed_q, one.unembed_out)]
    nn.quantize(target.model, 32, 4)
    gc.collect()
    assert all(module() is None for module in replaced)
