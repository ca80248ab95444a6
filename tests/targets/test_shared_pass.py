"""Passes over several sequences: the bits of each sequence alone, one model for each kind of cache."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import pytest

from mlxmtp.checkpoints import open_checkpoint
from mlxmtp.targets import detach, load_target, why_not_shared
from tests.grids import cases
from tests.scripted import assert_same_state, snapshot
from tests.targets.sweep import check_shared, write_checkpoint

KINDS = [
    "llama", "gemma3n", "gemma4_text", "deepseek_v32", "longcat_flash", "qwen3_next", "bailing_hybrid", "rwkv7",
]  # fmt: skip
"""Keys and values; windows, whose keys layers share by the cache or by the model; latents with index keys; two caches a
layer; gated delta; states that take a position from outside; states of two modules."""
OUTCOMES = {
    "plamo": "attention modules apart",
    "phi3small": "takes turns: attention to later tokens of a pass cannot be rolled back",
}


@pytest.mark.parametrize("kind", [*KINDS, *OUTCOMES])
def test_each_kind_of_cache_has_the_bits_of_each_sequence_alone(kind: str, tmp_path: Path) -> None:
    write_checkpoint(kind, tmp_path)
    target = load_target(open_checkpoint(tmp_path))
    assert check_shared(kind, target) == OUTCOMES.get(kind, "yes")


STATELESS = ["recurrent_gemma", "longcat_flash_ngram", "bailing_hybrid"]
"""States that are no zeros before the first token, or that grow with it; a position from outside."""


@pytest.mark.parametrize("kind", cases(STATELESS, STATELESS[:1]))
def test_sequences_without_a_state_share_passes(kind: str, tmp_path: Path) -> None:
    """A turn whose prompt is one token has read nothing; n-grams have states of other lengths after one token."""
    write_checkpoint(kind, tmp_path)
    target = load_target(open_checkpoint(tmp_path))
    assert why_not_shared(target) is None
    together, alone = ([target.make_cache() for _ in range(3)] for _ in range(2))
    for caches in (together, alone):
        target.forward(mx.array([[5, 9, 2]]), caches[1])
        target.forward(mx.array([[5]]), caches[2])
    for _ in range(2):
        tokens = [mx.array([[7, 8, 9][: 3 - b]]) for b in range(3)]
        apart = [target.open(*one) for one in zip(tokens, alone, strict=True)]
        for b, (one, other) in enumerate(zip(target.open_shared(tokens, together), apart, strict=True)):
            assert mx.array_equal(one.logits, other.logits), b
            one.commit(1)
            other.commit(1)
            assert_same_state(snapshot(together[b]), snapshot(alone[b]), b)


def test_a_pass_of_one_sequence_frees_the_states_of_shared_ones(tmp_path: Path) -> None:
    write_checkpoint("qwen3_next", tmp_path)
    target = load_target(open_checkpoint(tmp_path))
    caches = [target.make_cache() for _ in range(8)]
    token = mx.array([[7]])
    for one in target.open_shared([token] * 8, caches):
        one.commit(1)
    mx.eval([leaf.state for layer in caches for leaf in layer])
    for layer in caches[0]:
        detach(layer)
    mx.eval([leaf.state for leaf in caches[0]])
    del caches[1:]
    held = mx.get_active_memory()
    target.open(token, caches[0])
    assert mx.get_active_memory() < held
