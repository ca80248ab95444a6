"""What is promised of passes over several sequences, on this CPU and by stand-ins of an M1, an M3 and an M5."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models import switch_layers

from mlxmtp import Engine, GenerationOptions, load
from mlxmtp.engine import store
from mlxmtp.exactness import shared
from mlxmtp.exactness.guarantee import Guarantee, Identity
from mlxmtp.exactness.probe import ProbePlan, probe
from mlxmtp.exactness.shared import MAX_ROWS, shapes, share, why_apart
from mlxmtp.targets import Target
from mlxmtp.targets.sharing import share_whole_attention
from tests.exactness.conftest import KINDS, text
from tests.exactness.conftest import SHORT as FEW_LAYERS
from tests.exactness.stand_in import M1, M3, M5, Machine, backend, machine, narrow, own, wide
from tests.grids import cases

Engines = Callable[[str], Engine]
SHORT = ProbePlan((32,))
TOKENS = 8


def shared_by(model: Engine, identity: Identity, guarantee: Guarantee, num_sequences: int) -> Guarantee:
    apart = why_apart(model.target, identity, guarantee)
    return share(model.target, text(model), guarantee, num_sequences, apart)


def shown(model: Engine, identity: Identity, num_sequences: int) -> Guarantee:
    """The guarantee of short contexts, which the engine has from now on."""
    guarantee = probe(model.target, text(model), identity, SHORT)
    model.identity = identity
    model.__dict__["guarantee"] = shared_by(model, identity, guarantee, num_sequences)
    model._num_sequences = num_sequences
    return model.guarantee


MACHINES: list[tuple[Machine, Identity, str, int, list[int]]] = [
    (M1, "fast", "identical", 5, [5, 2, 1, 1, 1, 0, 0, 0, 0]),
    (M3, "fast", "distribution", 0, [8, 8, 8, 8, 8, 8, 8, 8, 0]),
    (M3, "strict", "identical-one-row", 16, [8, 8, 5, 4, 3, 2, 2, 2, 0]),
    (M3, "canonical", "identical-canonical", 5, [5, 2, 0, 0, 0, 0, 0, 0, 0]),
    (M1, "strict", "identical", 5, [5, 2, 1, 1, 1, 0, 0, 0, 0]),
    (M5, "strict", "identical-one-row", 16, [8, 8, 5, 4, 3, 2, 2, 2, 0]),
    (M5, "canonical", "identical-canonical", 5, [5, 2, 0, 0, 0, 0, 0, 0, 0]),
]


@pytest.mark.parametrize("case", cases(range(len(MACHINES)), (0, 1, 3)))
def test_turns_of_a_batch_are_what_each_is_alone(engine: Engines, case: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where tokens are promised to be identical, by as many rows as that holds for."""
    monkeypatch.setattr(shared, "MAX_ROWS", 16)
    which, identity, promise, rows, tokens = MACHINES[case]
    model = engine("4-bit")
    with machine(which, heads_per_key=6 if which is M1 else 4):
        guarantee = shown(model, identity, 8)
        assert (guarantee.promise, guarantee.num_rows) == (promise, rows)
        assert [guarantee.max_tokens(n) for n in range(1, 10)] == tokens
        for count in range(1, 6):
            most = guarantee.max_sequences(count)
            assert (
                most == 8
                if promise == "distribution"
                else max(n for n in range(1, 9) if n == 1 or tokens[n - 1] >= count)
            )
        if promise == "distribution":
            return
        prompts = [text(model, length) for length in range(11, 19)]

        def tokens_of(parallel: int, depth: int | None = 4, count: int = 8) -> list[list[int]]:
            options = GenerationOptions(max_tokens=TOKENS, depth=depth)
            return [one.tokens for one in model.batch(prompts[:count], options, raw=True, parallel=parallel)]

        plain = tokens_of(1, depth=0)
        for parallel in (3, 8):
            assert tokens_of(parallel) == plain, parallel
        assert tokens_of(4, depth=0) == plain, "plain decoding in one pass"
        if identity == "fast":
            model.target.longest_shared = lambda _: 1 << 20
            assert tokens_of(2) != plain, "the stand-in shows nothing"


@pytest.mark.parametrize("kind", cases(KINDS, ("4-bit", "latent", "window")))
def test_strict_keeps_each_rows_bits_in_shared_passes(
    engine: Engines, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Target, "max_fast_tokens", 4)
    monkeypatch.setattr(shared, "MAX_ROWS", 8)
    model = engine(kind)
    with backend(own):
        guarantee = shown(model, "strict", 3)
        assert (guarantee.promise, guarantee.num_rows, guarantee.not_shared) == ("identical-one-row", 8, "")
        wider = replace(guarantee, ways={}, promise="identical")
        assert shared.compare_shared(model.target, text(model), wider, 2).num_rows == 8
    with backend(own):
        model.target.listeners.clear()  # as MLX computes
        assert shared.compare_shared(model.target, text(model), guarantee, 3).num_rows == 1, "the backend shows nothing"


@pytest.mark.parametrize("first", ["whole", "strict"])
def test_attention_that_runs_whole_for_each_sequence_is_row_by_row_too(
    engine: Engines, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    """The two patches of a module compose, whichever is first."""
    monkeypatch.setattr(Target, "max_fast_tokens", 4)
    model = engine("dense")
    if first == "whole":
        share_whole_attention(model.target)
    with backend(narrow, attends=lambda rows, _: wide(rows)):
        guarantee = probe(model.target, text(model), "strict", SHORT)
        assert (guarantee.promise, guarantee.attention) == ("identical-one-row", False)
        if first == "strict":
            share_whole_attention(model.target)
        assert shared_by(model, "strict", guarantee, 3).num_rows == 12


@pytest.mark.parametrize("quantised", [True, False])
def test_experts_that_sort_their_rows_have_the_same_bits_on_this_cpu(
    engine: Engines, raw_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, quantised: bool
) -> None:
    """mlx-lm sorts them from 64 indices on, which shared passes reach."""
    model = engine("experts") if quantised else load(raw_checkpoint("qwen3_5_moe", dtype="float32", **FEW_LAYERS))
    sort, sorted_rows = switch_layers._gather_sort, []

    def counted(x: mx.array, indices: mx.array) -> Any:
        sorted_rows.append(indices.size)
        return sort(x, indices)

    monkeypatch.setattr(switch_layers, "_gather_sort", counted)
    guarantee = Guarantee("identical", 17, 32)
    assert shared_by(model, "fast", guarantee, 4).num_rows == MAX_ROWS
    assert max(sorted_rows) >= 64


def test_experts_run_in_parts_that_are_not_sorted(engine: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sorted rows have another kernel, which is not taken even where a comparison finds nothing."""
    monkeypatch.setattr(Target, "max_fast_tokens", 8)
    monkeypatch.setattr("mlxmtp.exactness.variants._same", lambda *_: True)
    monkeypatch.setattr(
        "mlxmtp.exactness.variants._seconds", lambda variant, *_: "in_parts" not in variant.__qualname__
    )
    model = engine("experts")
    with backend(gathered=lambda rows: 3 if rows >= 64 else 1):
        guarantee = shown(model, "strict", 4)
        assert (guarantee.promise, guarantee.num_rows) == ("identical-one-row", MAX_ROWS)
        assert "stock" in guarantee.ways.values()


class Spoilt:
    """`Target.open_shared` with other bits in passes of some shapes, or in the passes after them."""

    def __init__(self, target: Target, passes: set[tuple[int, int]], after: set[tuple[int, int]]) -> None:
        self.opened, self.passes, self.after = target.open_shared, passes, after
        self.last = (0, 0)

    def __call__(self, tokens: list[mx.array], caches: list[Any]) -> Any:
        found, shape = self.opened(tokens, caches), (len(tokens), tokens[0].shape[1])
        if len(tokens) == 1:
            return found
        if shape in self.passes or (shape == (self.last[0], 1) and self.last in self.after):
            found[-1].logits = found[-1].logits + 2.0**-10
        self.last = shape
        return found


def test_nothing_is_claimed_of_shared_passes_that_does_not_hold(
    engine: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bits change in random shapes of shared passes, in the pass or in what it leaves."""
    model, chance = engine("dense"), random.Random(24)
    monkeypatch.setattr(shared, "why_not_shared", lambda _: None)
    monkeypatch.setattr(Target, "max_fast_tokens", 8)  # as on a GPU, every shape is compared
    every = shapes(4, 6, 1)
    assert every[:5] == [(2, 1), (3, 1), (2, 2), (4, 1), (2, 3)]
    assert prod(every[-1]) == 24
    for trial in range(12):
        spoilt = set(chance.sample(every, chance.randrange(3)))
        after = {shape for shape in spoilt if chance.random() < 0.5}
        with monkeypatch.context() as patch:
            patch.setattr(model.target, "open_shared", Spoilt(model.target, spoilt - after, after))
            found = shared_by(model, "fast", Guarantee("identical", 6, 32), 4)
        assert found.num_rows == min([24, *(prod(shape) - 1 for shape in spoilt)]), (trial, spoilt, after)
        assert bool(found.not_shared) == bool(spoilt), trial
        assert (found.max_sequences(1) > 1) == ((2, 1) not in spoilt), trial


def test_an_error_shows_nothing_and_is_not_kept(engine: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    model, opened = engine("dense"), Target.open_shared
    known = model.guarantee

    def breaks(target: Target, tokens: Any, caches: Any) -> Any:
        if len(tokens) > 2:
            raise RuntimeError("[malloc] Unable to allocate")
        return opened(target, tokens, caches)

    monkeypatch.setattr("mlxmtp.exactness.shared.why_not_shared", lambda _: None)
    monkeypatch.setattr(Target, "open_shared", breaks)
    found = model.share_passes(3)
    assert (found.num_rows, found.complete, found.max_tokens(2)) == (2, False, 1)
    assert "passes over 3 sequences of 1 tokens: RuntimeError: [malloc]" in found.not_shared
    again = load(model.path)
    assert again.guarantee == known


def test_what_was_found_is_kept_for_as_many_sequences(
    raw_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Target, "max_fast_tokens", 4)
    path, asked = raw_checkpoint("qwen3_5"), []
    compare, tried = shared.compare_shared, shared.why_not_shared

    def counted(target: Target, tokens: Any, guarantee: Guarantee, num_sequences: int, on_pass: Any) -> Any:
        asked.append(num_sequences)
        return compare(target, tokens, guarantee, num_sequences, on_pass)

    monkeypatch.setattr(shared, "compare_shared", counted)
    monkeypatch.setattr(shared, "why_not_shared", lambda target: share_whole_attention(target) or tried(target))
    passes: list[tuple[int, int]] = []
    first = load(path, on_check=lambda *count: passes.append(count))
    assert first.guarantee.num_sequences == 1
    assert first.guarantee.max_tokens(2) == 0, "nothing is claimed before it is asked"
    passes.clear()
    kept = [first.share_passes(number) for number in (1, 2, 2, 3)][-1]
    assert passes == [*((i, 4) for i in range(1, 5)), *((i, 8) for i in range(1, 9))]
    again = load(path)
    assert again.share_passes(3) == again.guarantee == kept
    assert asked == [2, 3]
    assert again.target.whole_attention
    assert [again.target.longest_pass(*[9] * n) for n in (1, 2, 3)] == [2**31 - 1, 4, 4]
    monkeypatch.setattr(shared, "why_not_shared", lambda _: pytest.fail("tried again"))
    assert again.why_apart is None
    assert again.share_passes(4).num_sequences == 4
    monkeypatch.setattr(shared, "why_not_shared", tried)
    with backend():
        for number in (2, 3):
            strict = load(path, identity="strict")
            assert strict.share_passes(2).num_rows == 8
            assert asked[3:] == [2] * (number - 1), "the variants are compared in every process"


def test_what_cannot_share_says_why_and_is_not_tried_again(
    raw_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = raw_checkpoint("qwen3_5")
    for identity, norms, reason in (("fast", narrow, "it cannot"), ("strict", wide, "logits differ")):
        monkeypatch.setattr(shared, "why_not_shared", lambda _: "it cannot")
        with backend(narrow, norms=norms):
            model = load(path, identity=identity)
            assert (model.why_apart or "").startswith(reason)
            assert model.share_passes(4).max_sequences(1) == 1
            monkeypatch.setattr(shared, "why_not_shared", lambda _: pytest.fail("tried again"))
            assert (load(path, identity=identity).share_passes(4).not_shared).startswith(reason)
    assert store.load_guarantee(store.guarantee_file(model.facts, "strict")) == model.guarantee
