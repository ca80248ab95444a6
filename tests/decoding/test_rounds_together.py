"""Turns in the rounds of one loop: errors, ends and queued passes of one leave the others as they are, and each has a
distribution of its own."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlxmtp.checkpoints import open_checkpoint
from mlxmtp.decoding.depth import FixedDepth
from mlxmtp.decoding.draft import DraftRequest, MTPChain, propose
from mlxmtp.decoding.loop import RoundLoop, StopCheck, Turn, never_stop
from mlxmtp.decoding.sampler import Sampler, VerifyMode
from mlxmtp.decoding.sampling import Sampling
from mlxmtp.decoding.sequence import Sequence as Tokens
from mlxmtp.decoding.stats import Round
from mlxmtp.errors import NumericsError
from mlxmtp.heads import Head, load_head
from mlxmtp.targets import Target, load_target
from tests.decoding.law_tables import FALSE_ALARM
from tests.grids import cases
from tests.scripted import (
    KeepUntil,
    TableDrafter,
    TableTarget,
    assert_same_state,
    chance_of_more,
    random_table,
    snapshot,
)

PROMPTS = [[40, 7, 99, 40, 150, 3], [61, 20, 21], [5, 9, 150, 12, 40, 33, 101, 2, 7]]
LENGTH = 12
Model = tuple[Target, Head]


@pytest.fixture(scope="module")
def model(raw_checkpoint: Callable[..., Path]) -> Model:
    """A recurrent layer and one with keys, and a head with keys."""
    checkpoint = open_checkpoint(raw_checkpoint("qwen3_5", dtype="float32", layers=2, interval=2))
    target = load_target(checkpoint)
    return target, load_head(checkpoint, target)


def turn(
    model: Model,
    prompt: list[int],
    depth: int = 2,
    law: Sampler | None = None,
    keep: StopCheck = never_stop,
    count: int = LENGTH,
) -> Turn:
    target, head = model
    sequence = Tokens(target, head)
    sequence.prefill(prompt)
    return Turn(sequence, MTPChain(head), law or Sampler(Sampling()), FixedDepth(depth), keep, count)


def run(target: Any, turns: list[Turn]) -> list[list[int] | Exception]:
    """The tokens of each turn, or its error."""
    loop, found = RoundLoop(target), dict[Turn, Any]({one: [] for one in turns})
    while going := [one for one in turns if one.finish is None]:
        for one, outcome in loop.round(going).items():
            if isinstance(outcome, Round):
                found[one] += outcome.tokens
            else:
                found[one] = outcome
    for one in turns:
        one.close()
    return [*found.values()]


class Broken:
    """A logits processor that raises at its `last`-th call."""

    def __init__(self, last: int, *, reads_tokens: bool) -> None:
        self.reads_tokens = reads_tokens
        self._left = last

    def begin(self, prompt: Sequence[int]) -> None:
        pass

    def advance(self, tokens: Sequence[int]) -> None:
        pass

    def process(self, logits: mx.array, tokens: mx.array) -> mx.array:
        self._left -= 1
        if not self._left:
            raise ValueError("processor")
        return logits


def test_a_processor_that_raises_ends_its_own_turn(model: Model) -> None:
    """While drafts are drawn, at each step of the chain, and while they are verified; in plain rounds too."""
    alone = [run(model[0], [turn(model, prompt, depth)])[0] for depth in (0, 3) for prompt in PROMPTS]
    for depth in (0, 3):
        for reads_tokens in (False, True):
            for last in (1, 2, 4, 7):
                broken = Sampler(Sampling(), processors=[Broken(last, reads_tokens=reads_tokens)])
                turns = [turn(model, prompt, depth) for prompt in PROMPTS]
                turns[1] = turn(model, PROMPTS[1], depth, broken)
                first, error, third = run(model[0], turns)
                what = (depth, reads_tokens, last)
                assert str(error) == "processor", what
                assert turns[1].finish == "error", what
                assert [first, third] == [alone[3 * (depth > 0)], alone[3 * (depth > 0) + 2]], what


def test_logits_that_are_not_finite_end_their_own_turn(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sequence's rows are NaN from some pass on; drafts and plain rounds."""
    target = model[0]
    open_shared = target.open_shared
    for depth in (0, 3):
        alone = [run(target, [turn(model, prompt, depth)])[0] for prompt in PROMPTS]
        turns = [turn(model, prompt, depth) for prompt in PROMPTS]
        passes = 0

        def spoil(tokens: Any, caches: list[Any], *, turns: list[Turn] = turns) -> Any:
            nonlocal passes
            passes += 1
            found = open_shared(tokens, caches)
            for cache, rows in zip(caches, found, strict=True):
                if passes >= 3 and cache is turns[1].sequence.cache:
                    rows.logits = rows.logits * math.nan
            return found

        with monkeypatch.context() as patched:
            patched.setattr(target, "open_shared", spoil)
            first, error, third = run(target, turns)
        assert isinstance(error, NumericsError), depth
        assert [first, third] == [alone[0], alone[2]], depth


@pytest.mark.parametrize(
    ("first", "second", "third"), cases([(0, 0, 0), (3, 1, 0), (5, 2, 4)], default=[(0, 0, 0), (5, 2, 4)])
)
def test_every_end_leaves_the_caches_of_the_turn_alone(model: Model, first: int, second: int, third: int) -> None:
    """One turn ends by its budget, one within a round by its text, and one is stopped between rounds."""
    target, head = model
    for last in range(1, 8):
        turns = [
            turn(model, PROMPTS[0], first, count=last + 1),
            turn(model, PROMPTS[1], second, keep=KeepUntil(last)),
            turn(model, PROMPTS[2], third, count=100),
        ]
        loop = RoundLoop(target)
        for _ in range(last + 1):
            going = [one for one in turns if one.finish is None]
            loop.round(going)
        for one in turns:
            one.close()
        for i, one in enumerate(turns):
            tokens, what = one.sequence.tokens, (last, i)
            fresh = target.make_cache()
            for token in tokens[:-1]:
                target.forward(mx.array([[token]]), fresh)
            assert_same_state(snapshot(one.sequence.cache), snapshot(fresh), what)
            assert one.finish == ("length", "stop", None)[i], what
        read = Tokens(target, head)
        longest = turns[2].sequence
        read.prefill(longest.tokens)
        rows = min(one.head_cache[0].offset for one in (read, longest))
        for kept, fresh in zip(longest.head_cache, read.head_cache, strict=True):
            assert mx.array_equal(kept.keys[..., :rows, :], fresh.keys[..., :rows, :]), last


def test_a_chain_draws_no_more_drafts_than_a_turn_asks_for(model: Model) -> None:
    """Drafts, their head's rows and their distributions are those of the chain of each turn alone."""
    requests: list[list[DraftRequest]] = []
    for _ in range(2):
        laws = [Sampler(Sampling(1.0, seed=i), "block") for i in range(3)]
        turns = [turn(model, prompt, law=law) for prompt, law in zip(PROMPTS, laws, strict=True)]
        for number, one in enumerate(turns):  # as many pending rows as after a round that accepted drafts
            one.sequence._pending.append(mx.full((1, number, model[0].text_config["hidden_size"]), 0.5))
            one.sequence.tokens += [9] * number
        pairs = zip(turns, (4, 1, 2), strict=True)
        requests.append([DraftRequest(MTPChain(model[1]), one.sequence, depth, one.sampler) for one, depth in pairs])
    together = propose(requests[0])
    for i, (draft, request) in enumerate(zip(together, requests[1], strict=True)):
        (alone,) = propose([request])
        assert draft.tokens.tolist() == alone.tokens.tolist(), i
        assert len(draft.distributions) == request.depth == draft.depth, i
        pairs = zip(draft.distributions, alone.distributions, strict=True)
        assert all(mx.array_equal(one.logs, other.logs) for one, other in pairs), i
        assert_same_state(snapshot(requests[0][i].sequence.head_cache), snapshot(request.sequence.head_cache), i)


V = 3
RUNS = 500


@pytest.mark.parametrize("mode", cases(["token", "block", "seeded"], default=["block"]))
def test_two_turns_have_their_own_distributions_and_are_independent(mode: VerifyMode) -> None:
    """Pairs of tokens of two turns with other temperatures and seeds, by the product of their exact distributions.

    A chi-square test with a false alarm of 1e-6; the seeds are fixed.
    """
    table = random_table(V, seed=3, spread=1.5)
    target, drafter = TableTarget(table), TableDrafter(random_table(V, seed=4, spread=1.5))
    laws, depths, begin = (0.7, 1.5), (1, 2), [1, 2]
    pairs: Counter[tuple[int, ...]] = Counter()
    for number in range(RUNS):
        turns = []
        for i, (temperature, depth) in enumerate(zip(laws, depths, strict=True)):
            sequence = Tokens(target, None)  # type: ignore[arg-type]
            sequence.prefill(begin)
            law = Sampler(Sampling(temperature, seed=2 * number + i), mode)
            turns.append(Turn(sequence, drafter, law, FixedDepth(depth), never_stop, 2))
        found = run(target, turns)
        pairs[tuple(token for tokens in found for token in tokens)] += 1  # type: ignore[union-attr]
    own = [exact(table, begin, temperature) for temperature in laws]
    expected = {(*one, *other): own[0][one] * own[1][other] * RUNS for one in own[0] for other in own[1]}
    rare = [outcome for outcome, count in expected.items() if count < 5]
    cells = [(pairs[outcome], count) for outcome, count in expected.items() if count >= 5]
    cells.append((sum(pairs[outcome] for outcome in rare), sum(expected[outcome] for outcome in rare)))
    statistic = sum((seen - count) ** 2 / count for seen, count in cells)
    assert chance_of_more(statistic, len(cells) - 1) > FALSE_ALARM, statistic


def exact(table: mx.array, begin: list[int], temperature: float) -> dict[tuple[int, int], float]:
    """The probability of each two tokens."""
    rows = mx.softmax(table / temperature, axis=-1).tolist()
    a, b = begin
    return {(c, d): rows[a * V + b][c] * rows[b * V + c][d] for c in range(V) for d in range(V)}  # type: ignore[index]
