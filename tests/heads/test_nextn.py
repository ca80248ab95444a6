"""GLM's and DeepSeek's `nextn` layer: greedy identity, shared matrices, and the same head however it is stored."""

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest

from mlxmtp import load
from mlxmtp.conversion.attach import attach
from mlxmtp.conversion.convert import Packing, convert
from mlxmtp.conversion.inspect import inspect
from mlxmtp.errors import HeadError
from tests import tiny
from tests.comparing import assert_equal, head_of
from tests.running import generated, prefilled, reference
from tests.scripted import assert_same_state, snapshot

Checkpoints = Callable[..., Path]
PREFILL_ROWS = 64
PROMPT = [5, 9, 20, 7, 11, 6, 13, 21, 8, 19, 17, 4]


@pytest.mark.parametrize("kind", tiny.NEXTN_KINDS)
def test_greedy_tokens_are_those_of_mlx_lm(nextn_checkpoint: Checkpoints, kind: tiny.NextNKind) -> None:
    engine = load(nextn_checkpoint(kind, vocab=24))
    expected = reference(engine, PROMPT, 200)
    assert engine.mtp is not None
    for depth in range(5):
        assert generated(engine, PROMPT, 200, depth) == expected, depth


@pytest.mark.parametrize(
    ("kind", "bits"),
    [("glm4_moe", 4), ("glm4_moe_lite", 8), ("deepseek_v3", 4), ("deepseek_v32", 4), ("glm_moe_dsa", 8)],
)
def test_greedy_tokens_in_bfloat16_are_those_of_mlx_lm(
    nextn_conversion: Checkpoints, kind: tiny.NextNKind, bits: int
) -> None:
    """Sparse attention adds up more than two heads to choose its keys, where half precision shows the order."""
    engine = load(nextn_conversion(kind, bits=bits, vocab=24, dtype="bfloat16", index_heads=16))
    expected = reference(engine, PROMPT, 80)
    for depth in (1, 2, 4):
        assert generated(engine, PROMPT, 80, depth) == expected, depth


@pytest.mark.parametrize("length", [1, 2, 65, 66, 700])
@pytest.mark.parametrize("kind", tiny.NEXTN_KINDS)
def test_prompts_across_chunk_borders(nextn_checkpoint: Checkpoints, kind: tiny.NextNKind, length: int) -> None:
    engine = load(nextn_checkpoint(kind, vocab=24, index_heads=8))
    prompt = np.random.default_rng(length).integers(3, 24, length).tolist()
    expected = reference(engine, prompt, 24, PREFILL_ROWS)
    for depth in (0, 1, 4) if length == 700 else (2 + length % 3,):
        assert generated(engine, prompt, 24, depth, PREFILL_ROWS) == expected, depth
    assert generated(engine, prompt, 24, 3) == expected, "one-shot prefill differs from chunks"
    chunked, whole = (prefilled(engine, prompt, 1, rows) for rows in (PREFILL_ROWS, 2048))
    assert_same_state(snapshot(chunked.head_cache), snapshot(whole.head_cache))
    if length > 1:
        (hidden, _), (expected_hidden, _) = chunked.take_pending(), whole.take_pending()
        # a last chunk of one row is read in that row's order of products, where attention is latent
        alone = length % PREFILL_ROWS == 2 and kind != "glm4_moe"
        assert float(mx.abs(hidden - expected_hidden).max()) <= (1e-5 if alone else 0)


@pytest.mark.parametrize("kind", tiny.NEXTN_KINDS)
def test_copies_of_the_trunks_matrices_are_shared_and_others_kept(
    nextn_checkpoint: Checkpoints, kind: tiny.NextNKind
) -> None:
    shared, absent = head_of(nextn_checkpoint(kind)), head_of(nextn_checkpoint(kind, own="none"))
    assert_equal(shared, absent)
    others = head_of(nextn_checkpoint(kind, own="other"))
    assert others.keys() - shared.keys() == {"layers.0.embed_tokens.weight", "layers.0.lm_head.weight"}


@pytest.mark.parametrize("kind", tiny.NEXTN_KINDS)
def test_the_head_is_the_same_converted_attached_and_read_back(
    nextn_checkpoint: Checkpoints, tmp_path: Path, kind: tiny.NextNKind
) -> None:
    raw = nextn_checkpoint(kind)
    converted = convert(raw, tmp_path / "mlx").folder
    assert_equal(head_of(converted), head_of(raw))
    stripped = convert(nextn_checkpoint(kind, head=False), tmp_path / "stripped").folder
    attach(stripped, str(raw))
    assert_equal(head_of(stripped), head_of(raw))
    report = inspect(stripped)
    assert report.speculates
    assert report.head is not None
    assert (report.head.family, report.head.layers, report.head.norms) == ("nextn", 1, "plain")
    tokens = load(raw).generate(PROMPT, max_tokens=40).tokens
    assert load(converted).generate(PROMPT, max_tokens=40).tokens == tokens


@pytest.mark.parametrize("kind", tiny.NEXTN_KINDS)
def test_a_quantised_trunk_still_shares_its_matrices(
    nextn_checkpoint: Checkpoints, tmp_path: Path, kind: tiny.NextNKind
) -> None:
    raw = nextn_checkpoint(kind)
    converted = convert(raw, tmp_path / "whole", packing=Packing(bits=4, group_size=32)).folder
    assert not any("lm_head" in name or "embed_tokens" in name for name in head_of(converted))
    engine = load(converted)
    expected = reference(engine, PROMPT, 60)
    assert all(generated(engine, PROMPT, 60, depth) == expected for depth in (1, 3))


@pytest.mark.parametrize("layers", [3, 5])
def test_deepseek_v3_of_any_depth_loads_raw(nextn_checkpoint: Checkpoints, layers: int) -> None:
    """mlx-lm drops layer 61 by its number, and finds the head of any other model in its way."""
    raw = nextn_checkpoint("deepseek_v3", layers=layers)
    with pytest.raises(ValueError, match="parameters not in model"):
        mlx_lm.utils.load_model(raw)
    assert load(raw).mtp is not None


def test_a_head_of_two_layers_is_refused(tmp_path: Path) -> None:
    folder = tiny.nextn_checkpoint(tmp_path / "model", "glm4_moe")
    weights = tiny.load_weights(folder)
    second = {name.replace("layers.3.", "layers.4."): w for name, w in weights.items() if ".layers.3." in name}
    tiny.save_weights(folder, weights | second, made_by="pt")
    with pytest.raises(HeadError, match="has 2 MTP layers"):
        load(folder)
