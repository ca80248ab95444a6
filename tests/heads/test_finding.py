"""Heads stored in odd ways: which tensors are the head, in which format, and what is refused."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlxmtp import load
from mlxmtp.checkpoints import find_head, open_checkpoint
from mlxmtp.conversion.inspect import inspect
from mlxmtp.errors import CheckpointError, HeadError
from mlxmtp.heads import load_head, loading
from mlxmtp.heads.head import CONVENTIONS, Convention
from mlxmtp.heads.qwen import QWEN, QwenHead, norms_are_raw
from mlxmtp.targets import load_target
from tests import tiny
from tests.comparing import assert_equal, head_of

Checkpoints = Callable[..., Path]


def side_car(folder: Path) -> dict[str, mx.array]:
    return dict(mx.load(str(folder / "mtp.safetensors")))


def write_side_car(folder: Path, tensors: dict[str, mx.array]) -> None:
    mx.eval(tensors)
    mx.save_safetensors(str(folder / "mtp.safetensors"), tensors)


@pytest.fixture
def quantised(raw_checkpoint: Checkpoints, mlx_conversion: Checkpoints, tmp_path: Path) -> Path:
    """A 4-bit MoE conversion with its 4-bit head in a side-car, to change."""
    made = mlx_conversion(raw_checkpoint("qwen3_5_moe", dtype="float32"), bits=4, head="sidecar", head_bits=4)
    return Path(shutil.copytree(made, tmp_path / "model"))


def test_a_side_car_is_the_whole_head(raw_checkpoint: Checkpoints, mlx_conversion: Checkpoints, tmp_path: Path) -> None:
    """Nothing of a quantised head in the shards is mixed into an unquantised one beside them."""
    raw = raw_checkpoint("qwen3_5")
    both = Path(shutil.copytree(mlx_conversion(raw, bits=4, head="shards", head_bits=4), tmp_path / "both"))
    alone = mlx_conversion(raw, bits=4, head="sidecar")
    shutil.copy(alone / "mtp.safetensors", both)
    assert_equal(head_of(both), head_of(alone))


def test_a_side_car_needs_no_prefix(quantised: Path) -> None:
    expected = head_of(quantised)
    write_side_car(quantised, {name.removeprefix("mtp."): value for name, value in side_car(quantised).items()})
    assert_equal(head_of(quantised), expected)


def test_heads_of_two_kinds_in_the_shards_are_refused(tmp_path: Path) -> None:
    folder = tiny.raw_checkpoint(tmp_path / "model", "qwen3_5")
    weights = tiny.load_weights(folder)
    twice = {name.replace("mtp.", "model.mtp_block.", 1): w for name, w in weights.items() if "mtp.layers" in name}
    tiny.save_weights(folder, weights | {name + "2": w for name, w in twice.items()}, made_by="pt")
    with pytest.raises(HeadError, match="more than one head"):
        head_of(folder)


def test_fused_quantised_experts(quantised: Path) -> None:
    expected, stored = head_of(quantised), side_car(quantised)
    base = "mtp.layers.0.mlp."
    for part in ("weight", "scales", "biases"):
        halves = [stored.pop(f"{base}switch_mlp.{half}_proj.{part}") for half in ("gate", "up")]
        stored[f"{base}experts.gate_up_proj.{part}"] = mx.concatenate(halves, axis=-2)
        stored[f"{base}experts.down_proj.{part}"] = stored.pop(f"{base}switch_mlp.down_proj.{part}")
    write_side_car(quantised, stored)
    assert_equal(head_of(quantised), expected)


def cut(name: str, columns: int) -> Callable[[dict[str, mx.array]], Any]:
    return lambda tensors: tensors.update({name: tensors[name][..., :-columns]})


def drop(name: str) -> Callable[[dict[str, mx.array]], Any]:
    return lambda tensors: tensors.pop(name)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (cut("mtp.fc.weight", 5), "do not fit|expected"),
        (cut("mtp.fc.scales", 1), "do not fit|expected"),
        (drop("mtp.fc.weight"), "head's fc.weight is missing"),
        (drop("mtp.layers.0.mlp.switch_mlp.up_proj.weight"), "up_proj.weight is missing"),
        (lambda tensors: tensors.update({"mtp.layers.0.mlp.experts.9.up_proj.weight": mx.zeros((4, 4))}), "do not fit"),
        (lambda tensors: tensors.update({"mtp.mystery": mx.zeros((4,))}), "unknown tensor mystery"),
        (lambda tensors: tensors.update({"mtp.layers.1.x": mx.zeros((4,))}), "has 2 MTP layers"),
        (lambda tensors: tensors.update({"mtp.markov_head.markov_w1": mx.zeros((4,))}), "DSpark"),
    ],
)
def test_what_does_not_fit_is_refused(quantised: Path, damage: Callable[[dict[str, mx.array]], Any], says: str) -> None:
    tensors = side_car(quantised)
    damage(tensors)
    write_side_car(quantised, tensors)
    with pytest.raises(HeadError, match=says):
        head_of(quantised)


@pytest.mark.parametrize("dtype", [mx.float16, mx.float32])
def test_a_head_of_another_dtype_computes_in_the_trunks(
    raw_checkpoint: Checkpoints, mlx_conversion: Checkpoints, tmp_path: Path, dtype: mx.Dtype
) -> None:
    """Or every draft would convert the shared output matrix."""
    made = mlx_conversion(raw_checkpoint("qwen3_5"), head="sidecar")
    folder = Path(shutil.copytree(made, tmp_path / "model"))
    write_side_car(folder, {name: value.astype(dtype) for name, value in side_car(folder).items()})
    checkpoint = open_checkpoint(folder)
    target = load_target(checkpoint)
    head = load_head(checkpoint, target)
    out = head(mx.zeros((1, 1, 64), mx.bfloat16), mx.array([[5]]), head.make_cache([]))
    assert (out.dtype, head.logits(out).dtype) == (mx.bfloat16, mx.bfloat16)


@pytest.mark.parametrize("offset", [0.0, 1.0], ids=["raw", "shifted"])
@pytest.mark.parametrize(
    "means",
    [
        # input, post, q, k, pre_fc embedding, pre_fc hidden, last; raw
        (0.07, 0.04, 0.27, 0.27, 0.02, -0.08, 0.60),  # tiny-tools-qwen3_5-mtp
        (0.10, 0.05, 0.75, 0.75, -0.44, -0.51, 1.90),  # figures that other engines' issues report
        (-0.2, -0.2, 0.10, 0.10, -0.73, -0.50, 1.90),
    ],
)
def test_the_norms_format_is_read_from_the_blocks_norms(means: tuple[float, ...], offset: float) -> None:
    block = "layers.0.{}.weight"
    names = [block.format(n) for n in ("input_layernorm", "post_attention_layernorm")]
    names += [block.format(f"self_attn.{n}_norm") for n in "qk"]
    names += ["pre_fc_norm_embedding.weight", "pre_fc_norm_hidden.weight", "norm.weight"]
    mx.random.seed(0)
    weights = {n: mean + offset + 0.2 * mx.random.normal((256,)) for n, mean in zip(names, means, strict=True)}
    assert norms_are_raw(weights, trunk_is_raw=None) is (offset == 0)


def test_the_first_convention_of_a_family_is_in_use(
    raw_checkpoint: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = replace(QWEN, conventions=CONVENTIONS[::-1])
    monkeypatch.setattr(loading, "family_of", lambda _: family)
    engine = load(raw_checkpoint("qwen3_5"))
    assert engine.mtp is not None
    assert engine.mtp.convention == Convention(fed="pre", recycled="pre") != QwenHead.convention
    assert engine.target.hidden_at == "pre"


def test_a_layer_without_a_number_is_one_layer(tmp_path: Path) -> None:
    """`inspect` names the family of such a head, and the limit on layers holds."""
    folder = tiny.raw_checkpoint(tmp_path / "model", "qwen3_5")
    weights = tiny.load_weights(folder)
    tiny.save_weights(
        folder, {name.replace("mtp.layers.0.", "mtp.block."): w for name, w in weights.items()}, made_by="pt"
    )
    checkpoint = open_checkpoint(folder)
    files = find_head(checkpoint.config, checkpoint.tensors)
    assert files is not None
    assert files.layers == 1
    report = inspect(str(folder)).head
    assert report is not None
    assert report.family == "qwen-mtp"


def test_a_missing_expert_is_named(tmp_path: Path) -> None:
    """Of the head or of the trunk, and one of another shape, where mlx-lm does not stack them."""
    options = {"experts": "per_expert", "dtype": "float32", "layers": 2, "interval": 2}
    folder = tiny.raw_checkpoint(tmp_path, "qwen3_5_moe", **options)
    stored = tiny.load_weights(folder)
    for layer in ("mtp.layers.0.", "model.language_model.layers.1."):
        name = f"{layer}mlp.experts.0.up_proj.weight"
        others = {n: w for n, w in stored.items() if n != name}
        for own, found in (
            ({}, "expert 0 is missing"),
            ({name: mx.zeros((3, 3))}, r"expert 1 is .* expert 0 \(3, 3\)"),
        ):
            tiny.save_weights(folder, others | own, made_by="pt")
            with pytest.raises(CheckpointError, match=rf"mlp\.switch_mlp\.up_proj\.weight: {found}"):
                load(folder)
