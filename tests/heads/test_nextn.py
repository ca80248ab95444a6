"""GLM's and DeepSeek's `nextn` layer: greedy identity, shared matrices, and the same head however it is stored."""

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import mlx_lm
import pytest

from mlxmtp import load
from mlxmtp.checkpoints import open_checkpoint
from mlxmtp.conversion.attach import attach
from mlxmtp.conversion.convert import Packing, convert
from mlxmtp.conversion.inspect import inspect
from mlxmtp.errors import HeadError
from mlxmtp.targets import load_target
from tests import tiny
from tests.comparing import assert_equal, head_of
from tests.running import generated, reference

Checkpoints = Callable[..., Path]
PROMPT = [5, 9, 20, 7, 11, 6, 13, 21, 8, 19, 17, 4]


@pytest.mark.parametrize("kind", tiny.NEXTN_KINDS)
def test_greedy_tokens_are_those_of_mlx_lm(nextn_checkpoint: Checkpoints, kind: tiny.NextNKind) -> None:
    engine = load(nextn_checkpoint(kind, vocab=24))
    expected = reference(engine, PROMPT, 200)
    assert engine.mtp is not None
    for depth in range(5):
        assert generated(engine, PROMPT, 200, depth) == expected, depth


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


@pytest.mark.parametrize("kind", tiny.NEXTN_KINDS)
def test_a_pass_is_taken_back_to_any_row(nextn_checkpoint: Checkpoints, kind: tiny.NextNKind) -> None:
    """Latent attention computes a lone row in another order than several: float32 rounding apart, not bits."""
    target = load_target(open_checkpoint(nextn_checkpoint(kind)))
    rows, probe = mx.array([[3, 50, 7, 90, 12]]), mx.array([[21, 8]])
    for kept in range(rows.shape[1] + 1):
        caches = target.make_cache(), target.make_cache()
        for cache in caches:
            target.forward(mx.array([PROMPT]), cache)
        target.open(rows, caches[0]).commit(kept)
        if kept:
            target.forward(rows[:, :kept], caches[1])
        taken_back, fresh = (target.forward(probe, cache)[0] for cache in caches)
        assert float(mx.abs(taken_back - fresh).max()) < 1e-4, kept


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
