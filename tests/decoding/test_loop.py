"""The round loop on real models: tokens, caches and the head's rows after every round, stops, evaluations.

"Equal" means bit for bit: on MLX's CPU backend a pass over several rows gives the bits of as many single ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.generate import generate_step

from mlxmtp.checkpoints import open_checkpoint
from mlxmtp.decoding import sequence as decoding_sequence
from mlxmtp.decoding.depth import FixedDepth
from mlxmtp.decoding.draft import MTPChain
from mlxmtp.decoding.loop import TIMED_EVERY, TIMED_FIRST, StopCheck, generate, never_stop
from mlxmtp.decoding.sampler import Sampler, no_draft
from mlxmtp.decoding.sampling import Sampling
from mlxmtp.decoding.sequence import Sequence
from mlxmtp.decoding.stats import Round
from mlxmtp.heads import Head, load_head
from mlxmtp.targets import Target, load_target
from tests.grids import cases
from tests.scripted import (
    Depths,
    KeepUntil,
    ScriptedDrafter,
    TableDrafter,
    TableTarget,
    assert_same_state,
    counted_evaluations,
    random_table,
    snapshot,
)

PROMPT = [40, 7, 99, 40, 150, 3, 61, 20, 21, 22, 23, 24]
LENGTH = 40  # tokens of the plain run that everything is compared with
LAWS = {"greedy": Sampling(), "seeded": Sampling(1.0, top_p=0.95, seed=5)}

TRAINED = Path(__file__).parent.parent / "trained" / "glm4_moe"

Checkpoints = Callable[..., Path]


@dataclass(frozen=True)
class Plain:
    """A model, a law, and what plain decoding makes of PROMPT: the tokens, and the cache before each was fed."""

    target: Target
    head: Head
    law: Sampler
    tokens: list[int]  # PROMPT first
    states: list[list[mx.array]]  # by the number of tokens that the sequence has, from len(PROMPT)

    @property
    def vocabulary(self) -> int:
        return int(self.target.text_config["vocab_size"])

    def state(self, count: int) -> list[mx.array]:
        """The cache of a sequence of `count` tokens, all but the last of them fed one at a time."""
        return self.states[count - len(PROMPT)]

    def start(self, *, head: bool = False) -> Sequence:
        sequence = Sequence(self.target, self.head if head else None)
        sequence.prefill(PROMPT)
        return sequence

    def scripted(
        self, sequence: Sequence, rounds: list[tuple[int, int]], keep: StopCheck = never_stop, max_tokens: int = 1000
    ) -> Iterator[Round]:
        """Rounds that draft `depth` tokens of which the first `right` are the plain run's."""
        drafter = ScriptedDrafter(self.tokens, [right for _, right in rounds], self.vocabulary)
        policy = Depths(*(depth for depth, _ in rounds))
        return generate(self.target, drafter, sequence, self.law, policy, keep, max_tokens)


PLAIN_RUNS = ["qwen3_5-float32-greedy", "qwen3_5-float32-seeded", "qwen3_5-bfloat16-greedy"]
PLAIN_RUNS += ["qwen3_5_moe-float32-greedy", "qwen3_next-float32-greedy", "qwen3_next-float32-seeded"]


@pytest.fixture(scope="module", params=cases(PLAIN_RUNS, ("qwen3_5-bfloat16-greedy", "qwen3_next-float32-seeded")))
def plain(request: pytest.FixtureRequest, raw_checkpoint: Checkpoints) -> Plain:
    """Made without the loop: prompt and tokens fed one at a time, each token the law's choice in a row of its own."""
    kind, dtype, law = request.param.split("-")
    checkpoint = open_checkpoint(raw_checkpoint(kind, dtype=dtype))
    target = load_target(checkpoint)
    return by_hand(target, load_head(checkpoint, target), Sampler(LAWS[law]))


def by_hand(target: Target, head: Head, law: Sampler) -> Plain:
    cache, tokens, states = target.make_cache(), list(PROMPT), []
    for token in PROMPT[:-1]:
        target.forward(mx.array([[token]]), cache)
    while len(tokens) < len(PROMPT) + LENGTH:
        states.append(snapshot(cache))
        logits, _ = target.forward(mx.array([tokens[-1:]]), cache)
        verdict, _ = law.verify(logits, no_draft(), len(tokens))
        tokens.append(verdict.token.item())
    return Plain(target, head, law, tokens, states)


# -- every acceptance count -----------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", cases(range(1, 7), (1, 2, 5)))
def test_every_acceptance_count_leaves_what_plain_decoding_leaves(plain: Plain, depth: int) -> None:
    """Rounds that accept 0, 1, ..., depth drafts, one after the other, in one turn."""
    sequence = plain.start()
    plan = [(depth, right) for right in range(depth + 1)]
    for (_, right), one in zip(plan, plain.scripted(sequence, plan), strict=False):
        assert (one.drafted, one.accepted, len(one.tokens)) == (depth, right, right + 1)
        count = len(sequence.tokens)
        assert sequence.tokens == plain.tokens[:count]
        assert_same_state(snapshot(sequence.cache), plain.state(count), (depth, right))


def test_every_acceptance_count_in_the_first_round_of_a_one_token_prompt(plain: Plain) -> None:
    """The pass starts from empty caches."""
    first = Sequence(plain.target, None)
    first.prefill(PROMPT[:1])
    truth = PROMPT[:1] + tokens_of(generate(plain.target, None, first, plain.law, FixedDepth(0), never_stop, 8))
    for right in range(4):
        sequence = Sequence(plain.target, None)
        sequence.prefill(PROMPT[:1])
        drafter = ScriptedDrafter(truth, [right, 3], plain.vocabulary)
        rounds = generate(plain.target, drafter, sequence, plain.law, Depths(3), never_stop, 100)
        assert [next(rounds).accepted, next(rounds).accepted] == [right, 3]
        assert sequence.tokens == truth[: right + 6], right
        fed = plain.target.make_cache()
        for token in sequence.tokens[:-1]:
            plain.target.forward(mx.array([[token]]), fed)
        assert_same_state(snapshot(sequence.cache), snapshot(fed), right)


def tokens_of(rounds: Iterator[Round]) -> list[int]:
    return [token for one in rounds for token in one.tokens]


def test_plain_decoding_is_the_run_by_hand(plain: Plain) -> None:
    assert (
        tokens_of(generate(plain.target, None, plain.start(), plain.law, FixedDepth(0), never_stop, LENGTH))
        == plain.tokens[-LENGTH:]
    )


def test_plain_decoding_is_mlx_lms() -> None:
    target = load_target(open_checkpoint(TRAINED))
    sequence = Sequence(target, None)
    sequence.prefill(PROMPT)
    theirs = [int(t) for t, _ in generate_step(mx.array(PROMPT), target.model, max_tokens=LENGTH)]
    assert tokens_of(generate(target, None, sequence, Sampler(Sampling()), FixedDepth(0), never_stop, LENGTH)) == theirs


# -- stops ----------------------------------------------------------------------------------------------------

MORE = [88, 12, 200]
STOPS = [(right, kept) for right in range(5) for kept in range(1, right + 2)]


def test_a_stop_inside_a_round_leaves_the_caches_at_the_last_kept_token(plain: Plain) -> None:
    for right, kept in STOPS:
        sequence = plain.start()
        rounds = plain.scripted(sequence, [(4, 2), (4, right)], KeepUntil(3 + kept))
        last = list(rounds)[-1]
        assert (last.finish, last.accepted, len(last.tokens)) == ("stop", right, kept)
        count = len(PROMPT) + 3 + kept
        assert sequence.tokens == plain.tokens[:count], (right, kept)
        assert_same_state(snapshot(sequence.cache), plain.state(count), (right, kept))


@pytest.mark.parametrize(("right", "kept"), cases([(0, 1), (4, 1), (4, 3), (4, 5)], ((0, 1), (4, 3))))
def test_the_next_turn_goes_on_from_a_stop(plain: Plain, right: int, kept: int) -> None:
    """Going on, and going on after more prompt, give what a run gives that never stopped."""
    for more in ([], MORE):
        sequence = plain.start()
        list(plain.scripted(sequence, [(4, right)], KeepUntil(kept)))
        so_far = list(sequence.tokens)
        if more:
            sequence.prefill(more)
        going_on = tokens_of(generate(plain.target, None, sequence, plain.law, FixedDepth(0), never_stop, 8))

        fresh = Sequence(plain.target, None)
        fresh.prefill(so_far + more)
        assert going_on == tokens_of(generate(plain.target, None, fresh, plain.law, FixedDepth(0), never_stop, 8))
        assert_same_state(snapshot(sequence.cache), snapshot(fresh.cache))
        if not more:
            assert going_on == plain.tokens[len(so_far) : len(so_far) + 8]


def test_a_reader_may_leave_after_any_round(plain: Plain) -> None:
    for after in range(1, 5):
        sequence = plain.start()
        rounds = plain.scripted(sequence, [(3, 0), (3, 3), (3, 1), (3, 2)])
        for _ in range(after):
            next(rounds)
        rounds.close()  # type: ignore[attr-defined]
        count = len(sequence.tokens)
        assert sequence.tokens == plain.tokens[:count], after
        assert_same_state(snapshot(sequence.cache), plain.state(count), after)


@pytest.mark.parametrize("depth", [0, 1, 4])
def test_the_budget_is_exact(plain: Plain, depth: int) -> None:
    for max_tokens in (1, 2, 3, 5, 6, 7):
        sequence = plain.start()
        found = list(plain.scripted(sequence, [(depth, 9)] * 9, max_tokens=max_tokens))
        tokens = tokens_of(iter(found))
        assert tokens == plain.tokens[len(PROMPT) : len(PROMPT) + max_tokens], max_tokens
        assert [one.finish for one in found] == [None] * (len(found) - 1) + ["length"], max_tokens
        assert all(one.drafted < max_tokens for one in found), "a draft that the budget has no room for"
        assert_same_state(snapshot(sequence.cache), plain.state(len(sequence.tokens)), max_tokens)


def test_a_stop_with_the_budgets_last_token_is_a_stop(plain: Plain) -> None:
    *_, last = plain.scripted(plain.start(), [(4, 4)], KeepUntil(3), max_tokens=3)
    assert last.finish == "stop"


# -- plain decoding runs one row ahead ------------------------------------------------------------------------


@pytest.mark.parametrize("stop", ["keep", "budget", "close", "close at once"])
def test_the_row_that_plain_decoding_queued_ahead_is_taken_back(plain: Plain, stop: str) -> None:
    sequence = plain.start()
    keep = KeepUntil(5) if stop == "keep" else never_stop
    rounds = generate(plain.target, None, sequence, plain.law, FixedDepth(0), keep, 5 if stop == "budget" else 30)
    if stop.startswith("close"):
        for _ in range(1 if stop == "close at once" else 5):
            next(rounds)
        assert sequence.cache[-1].offset == len(sequence.tokens), "nothing was queued: the test shows nothing"
        rounds.close()  # type: ignore[attr-defined]
    else:
        assert list(rounds)[-1].finish == {"keep": "stop", "budget": "length"}[stop]
    count = len(sequence.tokens)
    assert sequence.tokens == plain.tokens[:count]
    assert_same_state(snapshot(sequence.cache), plain.state(count))


# -- the head -------------------------------------------------------------------------------------------------

MIXED = (2, 0, 0, 3, 5, 0, 1, 4)


def assert_head_is_true(target: Target, head: Head, sequence: Sequence) -> None:
    """Its rows and the pending ones are the target's rows, made from the target's own hidden states."""
    count = len(sequence.tokens) - 1
    assert {layer.offset for layer in sequence.cache if hasattr(layer, "offset")} == {count}
    _, hidden = target.forward(mx.array([sequence.tokens[:-1]]), target.make_cache())
    rows = sequence.head_cache[0].offset
    pending = mx.concatenate(sequence._pending, axis=1)
    assert rows + pending.shape[1] == count
    assert mx.array_equal(pending, hidden[:, rows:])
    fresh = head.make_cache([])
    if rows:
        head(hidden[:, :rows], mx.array([sequence.tokens[1 : rows + 1]]), fresh)
    assert_same_state(snapshot(sequence.head_cache), snapshot(fresh))


@pytest.mark.parametrize("depths", [pytest.param((6,), marks=pytest.mark.exhaustive), (1,), MIXED], ids=str)
def test_the_heads_rows_are_the_targets_after_every_round(plain: Plain, depths: tuple[int, ...]) -> None:
    sequence = plain.start(head=True)
    assert_head_is_true(plain.target, plain.head, sequence)
    rounds = generate(plain.target, MTPChain(plain.head), sequence, plain.law, Depths(*depths), KeepUntil(13), 100)
    for one, behind in zip(rounds, [*depths[1:], *[depths[-1]] * 100], strict=False):
        count = len(sequence.tokens)
        assert sequence.tokens == plain.tokens[:count]
        if one.drafted or behind:  # else the next pass is under way
            assert_same_state(snapshot(sequence.cache), plain.state(count))
            assert_head_is_true(plain.target, plain.head, sequence)
    assert len(sequence.tokens) == len(PROMPT) + 13
    sequence.prefill(MORE, chunk_size=2)
    assert_head_is_true(plain.target, plain.head, sequence)
    next(generate(plain.target, MTPChain(plain.head), sequence, plain.law, Depths(3), never_stop, 9))
    assert_head_is_true(plain.target, plain.head, sequence)


def test_states_that_wait_for_the_head_are_read_before_they_are_many(
    plain: Plain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long stretch without its drafts: no more states wait than `READ_EVERY`, and no pass of the head is longer."""
    monkeypatch.setattr(decoding_sequence, "READ_EVERY", 8)
    sequence, widths = plain.start(head=True), []
    call = type(plain.head).__call__

    def counted(head: Any, hidden: mx.array, *rest: Any) -> Any:
        widths.append(hidden.shape[1])
        return call(head, hidden, *rest)

    monkeypatch.setattr(type(plain.head), "__call__", counted)
    depths = [0] * 30 + [3]
    for one in generate(plain.target, MTPChain(plain.head), sequence, plain.law, Depths(*depths), KeepUntil(33), 100):
        assert sum(states.shape[1] for states in sequence._pending) <= 8, len(sequence.tokens)
        drafted = one.drafted
    assert drafted == 3
    assert 2 < max(widths) <= 8, widths
    assert_head_is_true(plain.target, plain.head, sequence)


def test_a_trained_heads_drafts_stand_and_its_rows_stay_true() -> None:
    """Here some drafts are accepted, so that rounds of every length happen."""
    checkpoint = open_checkpoint(TRAINED)
    target = load_target(checkpoint)
    head = load_head(checkpoint, target)
    sequence = Sequence(target, head)
    sequence.prefill(PROMPT, chunk_size=5)
    found = []
    for one in generate(target, MTPChain(head), sequence, Sampler(Sampling()), Depths(3), never_stop, 24):
        found.append(one)
        assert_head_is_true(target, head, sequence)
    plain = Sequence(target, None)
    plain.prefill(PROMPT, chunk_size=5)
    assert tokens_of(iter(found)) == tokens_of(
        generate(target, None, plain, Sampler(Sampling()), FixedDepth(0), never_stop, 24)
    )
    assert_same_state(snapshot(sequence.cache), snapshot(plain.cache))
    assert sum(one.accepted for one in found) > 0


# -- one evaluation a round -----------------------------------------------------------------------------------

VOCABULARY = 11
TABLE = random_table(VOCABULARY, seed=1, spread=2.0)


@pytest.mark.parametrize("verify", ["greedy", "token", "block", "seeded"])
def test_a_round_waits_for_the_device_once(plain: Plain, verify: Any) -> None:
    """Three times in the rounds that are timed in parts. Reading any array, and `mx.eval`, are counted."""
    law = Sampler(Sampling()) if verify == "greedy" else Sampler(Sampling(1.0, top_p=0.9, top_k=50, seed=1), verify)
    drafter, sequence = MTPChain(plain.head), plain.start(head=True)
    rounds = generate(plain.target, drafter, sequence, law, Depths(2, 3, 0, 3, 1), never_stop, 1000)
    drafted = 0
    for _ in range(TIMED_FIRST + 3):
        with counted_evaluations() as calls:
            one = next(rounds)
        timed = one.drafted > 0 and drafted % TIMED_EVERY == TIMED_FIRST
        drafted += one.drafted > 0
        assert len(calls) == one.evaluations == (3 if timed else 1), calls
        assert (one.phases is not None) == timed
        if one.phases:
            assert min(one.phases.draft_s, one.phases.verify_s, one.phases.other_s) > 0


def test_plain_decoding_waits_for_the_device_once_a_round(plain: Plain) -> None:
    rounds = generate(plain.target, None, plain.start(), plain.law, FixedDepth(0), never_stop, 1000)
    for _ in range(TIMED_FIRST + 3):
        with counted_evaluations() as calls:
            one = next(rounds)
        assert len(calls) == one.evaluations == 1, calls
    rounds.close()  # type: ignore[attr-defined]


def test_timed_rounds_come_back_and_change_nothing() -> None:
    law, tokens = Sampler(Sampling(1.0, seed=1)), TIMED_EVERY + 40
    found = []
    for depth in (None, 1):
        target = TableTarget(TABLE)
        sequence = Sequence(target, None)  # type: ignore[arg-type]
        sequence.prefill([3])
        if depth is None:
            rounds = generate(target, None, sequence, law, FixedDepth(0), never_stop, tokens)  # type: ignore[arg-type]
        else:
            drafter = TableDrafter(random_table(VOCABULARY, seed=2))
            rounds = generate(target, drafter, sequence, law, Depths(1), never_stop, tokens)  # type: ignore[arg-type]
        found.append(list(rounds))
    assert tokens_of(iter(found[0])) == tokens_of(iter(found[1]))
    timed = [number for number, one in enumerate(found[1]) if one.phases]
    assert timed == [n for n in range(len(found[1])) if n % TIMED_EVERY == TIMED_FIRST]
    assert len(timed) == 2
    assert {one.evaluations for one in found[0]} == {1}
