"""Taking rows back: after `commit(n)` of m rows every cache equals that of n rows fed one at a time, bit for bit."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models.cache import ArraysCache, KVCache, make_prompt_cache
from mlx_lm.utils import load_model

from mlxmtp.checkpoints import open_checkpoint
from mlxmtp.targets import Target, load_target
from mlxmtp.targets.patches import gated_delta
from tests import tiny
from tests.grids import cases, grid
from tests.scripted import assert_same_state, replaced, snapshot
from tests.targets.every_model import STATES, VOCAB
from tests.targets.sweep import write_checkpoint

MOST_ROWS = 7
ROOM = 256  # a cache of keys and values grows by as many rows
PROMPT = list(range(20, 31))
FED = [40, 7, 99, 40, 150, 3, 61]
AFTER = [77, 5]
MODELS = ["qwen3_5-float32", "qwen3_5-bfloat16", "qwen3_5_moe-float32", "qwen3_next-float32"]
"""Experts run on the CPU backend in float32 only."""
ATTENDING = [(kind, form) for kind in tiny.NEXTN_KINDS for form in ("float32", "bfloat16", "4-bit")]

Checkpoints = Callable[..., Path]


@pytest.fixture(scope="module", params=cases(MODELS, ("qwen3_5-bfloat16", "qwen3_next-float32")))
def target(request: pytest.FixtureRequest, raw_checkpoint: Checkpoints) -> Target:
    kind, dtype = request.param.split("-")
    return load_target(open_checkpoint(raw_checkpoint(kind, dtype=dtype)))


@pytest.fixture(params=[[], PROMPT], ids=["empty", "prefilled"])
def prompt(request: pytest.FixtureRequest) -> list[int]:
    found: list[int] = request.param
    return found


@pytest.fixture(params=["states kept", "inputs replayed", "inputs replayed by MLX"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How a recurrent layer finds its state: kept row by row, or recomputed from the pass's inputs.

    They are recomputed by mlx-lm's recurrence, as on Metal, or by MLX's own, as on CUDA. Only the choice is forced: the
    recurrence itself still sees this machine's device.
    """
    if request.param != "states kept":
        pretend_gpu(monkeypatch, metal=request.param == "inputs replayed")
    return str(request.param)


def pretend_gpu(monkeypatch: pytest.MonkeyPatch, *, metal: bool, **others: Any) -> None:
    """Let the recurrence be chosen as on Metal, or as on CUDA."""
    gpu = replaced(mx.metal, is_available=lambda: metal)
    monkeypatch.setattr(gated_delta, "mx", replaced(mx, default_device=lambda: mx.gpu, metal=gpu, **others))


def prefilled(target: Target, prompt: list[int]) -> list[Any]:
    cache = target.make_cache()
    if prompt:
        target.forward(mx.array([prompt]), cache)
    return cache


def one_by_one(target: Target, cache: list[Any], tokens: list[int]) -> tuple[list[list[mx.array]], list[mx.array]]:
    """The cache's states before the first token and after each, and the logits [1, 1, V] of each."""
    states, logits = [snapshot(cache)], []
    for token in tokens:
        logits.append(target.forward(mx.array([[token]]), cache)[0])
        states.append(snapshot(cache))
    return states, logits


def test_the_models_have_both_kinds_of_cache(target: Target) -> None:
    kinds = {type(layer) for layer in target.make_cache()}
    assert kinds == {KVCache, ArraysCache}
    assert target.reversible


def test_commit_leaves_the_rows_that_it_keeps(target: Target, prompt: list[int], way: str) -> None:
    start = prefilled(target, prompt)
    states, logits = one_by_one(target, deepcopy(start), FED)
    for rows in (1, 2, 3, MOST_ROWS):
        for keep in range(rows + 1):
            cache = deepcopy(start)
            opened = target.open(mx.array([FED[:rows]]), cache)
            assert mx.array_equal(opened.logits, mx.concatenate(logits[:rows], axis=1)), (rows, keep)
            opened.commit(keep)
            assert_same_state(snapshot(cache), states[keep], (rows, keep))


def test_decoding_goes_on_from_a_commit(target: Target, prompt: list[int], way: str) -> None:
    """The state is not only equal but used: a second pass, and a third that is not a transaction."""
    for keep in (0, 1, 3, 4):
        states, logits = one_by_one(target, prefilled(target, prompt), FED[:keep] + AFTER + AFTER)
        cache = prefilled(target, prompt)
        target.open(mx.array([FED[:4]]), cache).commit(keep)
        opened = target.open(mx.array([[*AFTER, 8]]), cache)
        opened.commit(2)
        last, _ = target.forward(mx.array([AFTER]), cache)
        assert mx.array_equal(opened.logits[:, :2], mx.concatenate(logits[keep : keep + 2], axis=1)), keep
        assert mx.array_equal(last, mx.concatenate(logits[keep + 2 :], axis=1)), keep
        assert_same_state(snapshot(cache), states[-1], keep)


def test_a_row_queued_ahead_is_taken_back(target: Target, prompt: list[int], way: str) -> None:
    """Plain decoding opens the next row before the one under way has been read; committed rows stay."""
    states, _ = one_by_one(target, prefilled(target, prompt), FED[:2])
    cache = prefilled(target, prompt)
    for token in FED[:2]:
        target.open(mx.array([[token]]), cache)
    ahead = target.open(mx.array([[9]]), cache)
    ahead.commit(0)
    assert_same_state(snapshot(cache), states[2])


def test_replay_is_reached(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pretended Metal takes the other branch: it never computes row by row."""
    calls = []
    honest = gated_delta.RecurrentLayer._row_by_row
    monkeypatch.setattr(gated_delta.RecurrentLayer, "_row_by_row", lambda *a: calls.append(1) or honest(*a))
    target.open(mx.array([FED[:3]]), target.make_cache()).commit(1)
    layers = sum(isinstance(layer, ArraysCache) for layer in target.make_cache())
    assert len(calls) == layers > 0
    for metal in (True, False):
        pretend_gpu(monkeypatch, metal=metal)
        target.open(mx.array([FED[:3]]), target.make_cache()).commit(1)
        assert len(calls) == layers, metal


def test_mlxs_own_recurrence_is_used_only_where_it_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, stock = ((2, 32), (4, 16)), mx.fast.gated_delta_update

    def refused(*_: Any) -> Any:
        raise RuntimeError("no kernel for CUDA")

    def other_bits(q: mx.array, *rest: Any) -> Any:
        y, state = stock(q, *rest)
        return (y * (1 + 1e-6) if q.shape[1] > 1 else y), state

    def wrong(*given: Any) -> Any:
        y, state = stock(*given)
        return y, 1.01 * state

    for law in (stock, refused, other_bits, wrong, None):
        fast = replaced(mx.fast, gated_delta_update=law)
        if law is None:
            del fast.gated_delta_update
        pretend_gpu(monkeypatch, metal=False, fast=fast)
        gated_delta.mlx_agrees.cache_clear()
        assert gated_delta.kernel_for_all_rows(*sizes) == (gated_delta.mlx_update if law is stock else None), law
    gated_delta.mlx_agrees.cache_clear()


def test_one_wrong_row_would_be_seen(target: Target, prompt: list[int]) -> None:
    """Neighbouring states differ in every layer, so that a commit which is off by one cannot pass."""
    states, _ = one_by_one(target, prefilled(target, prompt), FED[:3])
    for before, after in itertools.pairwise(states):
        for one, other in zip(before[-len(after) :], after, strict=False):
            assert not mx.array_equal(one, other)


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_an_interrupted_pass_leaves_nothing_open(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the next prefill would keep the state of every row."""
    cache = target.make_cache()
    with monkeypatch.context() as patch:
        patch.setattr(target, "forward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            target.open(mx.array([[3, 4]]), cache)
    target.forward(mx.array([[3, 4, 5]]), cache)
    layers = target._rollback._gated.values()
    assert layers
    assert all(layer._conv.input is None and layer._state_after is None for layer in layers)


# -- layers with states of any kind, row by row


@pytest.mark.parametrize("kind", cases([*STATES], [*STATES][:5]))
def test_every_kind_of_state_goes_back_to_any_row(kind: str, tmp_path: Path) -> None:
    """The state is not only equal but used: by a pass, which is taken back too, and by a prompt."""
    write_checkpoint(kind, tmp_path)
    target = load_target(open_checkpoint(tmp_path))
    fed, after = [token % VOCAB for token in FED[:4]], [token % VOCAB for token in AFTER]
    for prompt in ([], [token % VOCAB for token in PROMPT]):
        start = prefilled(target, prompt)
        for keep in range(len(fed) + 1):
            states, logits = one_by_one(target, deepcopy(start), fed[:keep] + after)
            cache, where = deepcopy(start), (len(prompt), keep)
            target.open(mx.array([fed]), cache).commit(keep)
            assert_same_state(snapshot(cache), states[keep], where)
            opened = target.open(mx.array([[*after, 8]]), cache)
            opened.commit(len(after))
            assert mx.array_equal(opened.logits[:, :2], mx.concatenate(logits[keep:], axis=1)), where
            assert_same_state(snapshot(cache), states[-1], where)
            fresh = deepcopy(start)
            one_by_one(target, fresh, fed[:keep] + after)
            read = [target.forward(mx.array([fed]), one)[0] for one in (cache, fresh)]
            assert mx.array_equal(*read), where


def test_what_ran_row_by_row_is_let_go(tmp_path: Path) -> None:
    """A layer's states after the rows of a pass would be held until the next one, which keeps as many."""
    write_checkpoint("mamba2", tmp_path)
    target = load_target(open_checkpoint(tmp_path))
    cache = target.make_cache()
    opened = target.open(mx.array([[3, 4, 5, 6]]), cache)
    assert not target._rollback._rows._states
    opened.commit(2)
    assert not opened._commits


# -- models whose layers all append


@pytest.fixture(scope="module")
def attending(request: pytest.FixtureRequest, nextn_checkpoint: Checkpoints, nextn_conversion: Checkpoints) -> Target:
    """Grouped attention, latent attention, and sparse attention to 8 keys, chosen by sums that have roundings."""
    kind, form = request.param
    if form == "4-bit":
        return load_target(open_checkpoint(nextn_conversion(kind, bits=4, dtype="bfloat16", index_heads=16)))
    layers = tiny.NextNSizes.layers if form == "bfloat16" else 1  # gather_mm knows no bfloat16 on CPU
    return load_target(open_checkpoint(nextn_checkpoint(kind, dtype=form, dense=layers, index_heads=16)))


WHOLE = "deepseek_v32"
"""The kind whose lengths are run by default: its attention is latent and sparse."""


@pytest.mark.parametrize(
    ("attending", "length"),
    grid(
        ATTENDING,
        [0, 1, 5, ROOM - 3],
        default=lambda attending, length: (
            length != 1 if attending == (WHOLE, "4-bit") else (attending[1], length) == ("float32", 5)
        ),
    ),
    indirect=["attending"],
    ids=str,
)
def test_attention_over_several_rows_is_that_over_one(attending: Target, length: int) -> None:
    """Sparse attention: with as many keys as it may choose, with more from the middle of a pass on, and with more.

    There, the cache grows in the middle of a pass. Passes of every length are taken back to some row, and the longest
    to any.
    """
    prompt = [20 + i * i % 251 for i in range(length)]
    cache = prefilled(attending, prompt)
    states, logits = one_by_one(attending, deepcopy(cache), FED)
    for rows in range(1, MOST_ROWS + 1):
        for keep in range(rows + 1) if rows == MOST_ROWS else (rows // 2,):
            opened = attending.open(mx.array([FED[:rows]]), cache)
            assert mx.array_equal(opened.logits, mx.concatenate(logits[:rows], axis=1)), (rows, keep)
            opened.commit(keep)
            assert_same_state(snapshot(cache), states[keep], (rows, keep))
            for layer in cache:
                layer.trim(keep)


@pytest.mark.parametrize("kind", ["glm4_moe_lite", "deepseek_v3", "deepseek_v32", "glm_moe_dsa"])
def test_a_prefill_keeps_the_order_of_mlx_lm(nextn_checkpoint: Checkpoints, kind: tiny.NextNKind) -> None:
    """Latent attention has an order of products for one row and another for several: passes alone take the first."""
    target = load_target(open_checkpoint(nextn_checkpoint(kind)))
    tokens = mx.array([FED])
    untouched, _ = load_model(nextn_checkpoint(kind, head=False))
    expected = untouched(tokens, cache=make_prompt_cache(untouched))
    opened = target.open(tokens, target.make_cache())
    assert not mx.array_equal(opened.logits, expected)
    assert mx.array_equal(target.forward(tokens, target.make_cache())[0], expected)


def test_an_interrupted_pass_leaves_prefills_as_they_were(
    nextn_checkpoint: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = load_target(open_checkpoint(nextn_checkpoint("glm4_moe_lite")))
    tokens = mx.array([FED])
    expected, _ = target.forward(tokens, target.make_cache())
    with monkeypatch.context() as patch:
        patch.setattr(target, "forward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            target.open(tokens, target.make_cache())
    assert mx.array_equal(target.forward(tokens, target.make_cache())[0], expected)
