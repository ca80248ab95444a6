"""Heads of trunks with states: what Nemotron, Ling (2.5 and 3.0) and Kimi have besides test_layer_families.py."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlxmtp.checkpoints import find_head, open_checkpoint
from mlxmtp.errors import HeadError
from mlxmtp.heads import build_head, resolve_head
from mlxmtp.targets import Target, load_target
from tests import tiny
from tests.heads import reference_hybrid
from tests.heads.test_parity import HEAD_TOLERANCE, TRUNK_TOLERANCE

Checkpoints = Callable[..., Path]


def built(folder: Path) -> tuple[Target, Any]:
    """The target and the head of a checkpoint, whatever can be rolled back."""
    checkpoint = open_checkpoint(folder)
    target, source = load_target(checkpoint), resolve_head(checkpoint)
    assert source.files is not None
    head = build_head(source.files, target, trunk_is_raw=source.trunk_is_raw)
    target.hidden_at = head.hidden_at
    return target, head


def changed(folder: Path, dest: Path, change: Callable[[dict[str, mx.array]], None], **config: Any) -> Path:
    """A copy of a checkpoint with other tensors."""
    weights = tiny.load_weights(folder)
    change(weights)
    tiny.save_weights(dest, weights, made_by="pt")
    tiny.write_json(dest / "config.json", open_checkpoint(folder).config | config)
    tiny.tokenizer(dest, 288)
    return dest


@pytest.mark.parametrize("options", [{}, {"latent": 32, "pattern": "MM*M"}], ids=str)
def test_kimi_k3_equals_its_reference_with_experts_of_any_width(
    hybrid_checkpoint: Checkpoints, options: dict[str, Any]
) -> None:
    folder = hybrid_checkpoint("kimi_k3", **options)
    target, head = built(folder)
    tokens, ahead = mx.array([[5, 9, 40, 7, 3, 3, 8]]), mx.array([[5, 11]])
    expected = reference_hybrid.kimi(folder, tokens, ahead)
    logits, hidden = target.forward(tokens, target.make_cache())
    assert float(mx.abs(hidden - expected["trunk_hidden"]).max()) < TRUNK_TOLERANCE
    assert float(mx.abs(logits - expected["trunk_logits"]).max()) < TRUNK_TOLERANCE
    out = head(expected["trunk_hidden"][:, :-1], tokens[:, 1:], head.make_cache([]))
    assert float(mx.abs(head.logits(out) - expected["head_logits_d1"]).max()) < HEAD_TOLERANCE


@pytest.mark.parametrize("kind", tiny.HYBRID_KINDS)
def test_the_hidden_state_fed_is_next_to_the_final_norm(hybrid_checkpoint: Checkpoints, kind: tiny.HybridKind) -> None:
    """Kimi's is before it: after K3's last mix of residuals, for nothing but the norm is between it and the logits."""
    folder = hybrid_checkpoint(kind)
    target, _ = built(folder)
    assert target.hidden_at == ("pre" if kind.startswith("kimi") else "post")
    logits, hidden = target.forward(mx.array([[5, 9, 40, 7, 3, 3, 8]]), target.make_cache())
    weights = {name: np.array(w, np.float64) for name, w in tiny.load_weights(folder).items() if "layers" not in name}
    end = {name.split(".")[-2]: w for name, w in weights.items()}
    normed = np.array(hidden[0], np.float64)
    if target.hidden_at == "pre":
        normed = reference_hybrid.rms(normed, end["norm"])
    assert np.abs(normed @ end["lm_head"].T - np.array(logits[0])).max() < 2e-5


def test_kimi_k3s_packed_experts_are_used_as_they_are(hybrid_checkpoint: Checkpoints, tmp_path: Path) -> None:
    """MXFP4, in the trunk and in the head: the same as a checkpoint of the dequantised values."""
    packed = hybrid_checkpoint("kimi_k3", packed=True)

    def unpack(weights: dict[str, mx.array]) -> None:
        for name in [name for name in weights if name.endswith("_packed")]:
            base = name.removesuffix("_packed")
            codes, scales = weights.pop(name).view(mx.uint32), weights.pop(f"{base}_scale")
            weights[base] = mx.dequantize(codes, scales, group_size=32, bits=4, mode="mxfp4").astype(mx.float32)

    config = open_checkpoint(packed).config
    text = {key: value for key, value in config["text_config"].items() if key != "quantization_config"}
    whole = changed(packed, tmp_path, unpack, text_config=text)
    ids, found = mx.array([[5, 9, 40, 7, 3, 8]]), []
    for folder in (packed, whole):
        target, head = built(folder)
        logits, hidden = target.forward(ids[:, :-1], target.make_cache())
        out = head(hidden, ids[:, 1:], head.make_cache([]))
        found.append((logits, hidden, head.logits(out)))
        experts = [w.dtype for name, w in tree_flatten(head.parameters()) if "switch_mlp" in name]
        assert (mx.uint32 in experts) == (folder is packed)
    for one, other in zip(*found, strict=True):
        assert float(mx.abs(one - other).max()) < 1e-4


def test_nemotrons_two_blocks_are_one_layer(hybrid_checkpoint: Checkpoints, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(hybrid_checkpoint("nemotron_h"))
    files = find_head(checkpoint.config, checkpoint.tensors)
    assert files is not None
    assert files.layers == 1

    def double(weights: dict[str, mx.array]) -> None:
        for name in [name for name in weights if name.startswith("mtp.")]:
            second = name.replace("layers.0.", "layers.2.").replace("layers.1.", "layers.3.")
            weights[second] = weights[name]

    with pytest.raises(HeadError, match="has 2 MTP layers"):
        built(changed(checkpoint.folder, tmp_path, double))


def test_scales_of_a_cache_in_fp8_are_ignored(hybrid_checkpoint: Checkpoints, tmp_path: Path) -> None:
    def add(weights: dict[str, mx.array]) -> None:
        weights["mtp.layers.0.mixer.k_proj.k_scale"] = mx.array([1.0])
        weights["mtp.layers.0.mixer.v_proj.v_scale"] = mx.array([1.0])

    folder = hybrid_checkpoint("nemotron_h")
    one, other = (dict(tree_flatten(built(f)[1].parameters())) for f in (folder, changed(folder, tmp_path, add)))
    assert one.keys() == other.keys()


def no_experts(weights: dict[str, mx.array]) -> None:
    for name in [name for name in weights if name.startswith("mtp.layers.1.mixer.gate")]:
        del weights[name]


@pytest.mark.parametrize(
    ("kind", "change", "config", "said"),
    [
        ("nemotron_h", no_experts, {}, r"the head's blocks are \*, expected \*E \(attention, then experts\)"),
        ("nemotron_h", lambda w: w.pop("mtp.layers.0.mixer.o_proj.weight"), {}, "o_proj.weight is missing"),
        ("nemotron_h", lambda w: w.pop("mtp.layers.0.eh_proj.weight"), {}, "have no eh_proj.weight"),
        ("nemotron_h", lambda _: None, {"mtp_block_configs": [{}]}, r"Puzzle model's head .*\(mtp_block_configs\)"),
        ("bailing_hybrid", lambda w: w.pop("model.layers.2.final_layernorm.weight"), {}, "norm.weight is missing"),
        ("bailing_moe_v3", lambda w: w.pop("model.layers.2.attention.g_proj.weight"), {}, "g_proj.weight is missing"),
        ("kimi_linear", lambda w: w.pop("model.layers.2.self_attn.q_proj.weight"), {}, "q_proj.weight is missing"),
        ("kimi_k3", lambda w: w.pop("language_model.model.layers.3.hnorm.weight"), {}, "hnorm.weight is missing"),
    ],
    ids=lambda value: None if callable(value) else str(value),
)  # fmt: skip
def test_a_head_with_a_part_missing_is_refused(
    hybrid_checkpoint: Checkpoints,
    tmp_path: Path,
    kind: tiny.HybridKind,
    change: Callable[[dict[str, mx.array]], None],
    config: dict[str, Any],
    said: str,
) -> None:
    folder = changed(hybrid_checkpoint(kind), tmp_path, change, **config)
    with pytest.raises(HeadError, match=said):
        built(folder)
