"""Constraints with speculation on: whatever is drafted, the tokens are those of constrained plain decoding."""

from __future__ import annotations

import itertools
from collections.abc import Sequence as Several
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlxmtp.decoding.depth import FixedDepth
from mlxmtp.decoding.logits_processors import TokenMask
from mlxmtp.decoding.loop import TIMED_FIRST, generate, never_stop
from mlxmtp.decoding.sampler import Draft, Sampler, VerifyMode, no_draft
from mlxmtp.decoding.sampling import Sampling
from mlxmtp.decoding.sequence import Sequence
from mlxmtp.decoding.stats import Round
from tests.decoding.law_tables import FALSE_ALARM, chance_of_worse
from tests.grids import grid
from tests.scripted import Depths, KeepUntil, TableDrafter, TableTarget, counted_evaluations, one_hot, random_table

V = 6
TARGET, DRAFT = random_table(V, seed=5, spread=1.5), random_table(V, seed=6, spread=1.5)
PROMPT = [1, 2]
TEMPERATURE = 0.9


def allowed(before: Several[int]) -> list[bool]:
    """Depends on all the tokens of the turn; forbids two or three of six."""
    return [(sum(before) + len(before) + 2 * token) % 5 < 3 for token in range(V)]


class Sums(TokenMask):
    """`allowed` as a constraint. It notes what it was told."""

    def __init__(self, width: int = V) -> None:
        self.stands: list[int] = []
        self.asked: list[list[int]] = []
        self._width = width

    def masks(self, drafts: Several[int]) -> mx.array:
        self.asked.append(list(drafts))
        before = [[*self.stands, *drafts[:i]] for i in range(len(drafts) + 1)]
        return mx.array([(allowed(tokens) + [True] * self._width)[: self._width] for tokens in before])

    def advance(self, tokens: Several[int]) -> None:
        self.stands += tokens


class ForbiddenDrafter:
    """Always drafts what may not come next."""

    def propose(self, sequence: Sequence, depth: int, sampler: Sampler) -> Draft:
        tokens: list[int] = []
        for _ in range(depth):
            tokens.append(allowed([*sequence.tokens[len(PROMPT) :], *tokens]).index(False))
        return Draft(mx.array([tokens], mx.uint32), [one_hot(token, V) for token in tokens]) if depth else no_draft()


class LookedUpDrafter:
    """Drafts without a distribution: the likeliest tokens, whatever the constraint says of them."""

    def propose(self, sequence: Sequence, depth: int, sampler: Sampler) -> Draft:
        table, tokens = np.array(TARGET), list(sequence.tokens)
        for _ in range(depth):
            tokens.append(int(table[tokens[-2] * V + tokens[-1]].argmax()))
        drafts = tokens[len(sequence.tokens) :]
        return Draft(mx.array([drafts], mx.uint32), [], from_lookup=True) if depth else no_draft()


def turn(
    sampling: Sampling,
    depth: int | None,
    count: int,
    verify: VerifyMode | None = None,
    constraint: Sums | None = None,
    keep: Any = never_stop,
    drafter: Any = None,
) -> list[Round]:
    target, law = TableTarget(TARGET), Sampler(sampling, verify, [constraint or Sums()])
    sequence = Sequence(target, None)  # type: ignore[arg-type]
    sequence.prefill(PROMPT)
    if depth is None:
        return list(generate(target, None, sequence, law, FixedDepth(0), keep, count))  # type: ignore[arg-type]
    drafter = drafter or TableDrafter(DRAFT)
    return list(generate(target, drafter, sequence, law, Depths(depth), keep, count))  # type: ignore[arg-type]


def tokens_of(found: list[Round]) -> list[int]:
    return [token for one in found for token in one.tokens]


def greedy_by_hand(count: int) -> list[int]:
    table, tokens = np.array(TARGET), []
    for _ in range(count):
        before = [*PROMPT, *tokens]
        row = np.where(allowed(tokens), table[before[-2] * V + before[-1]], -np.inf)
        tokens.append(int(row.argmax()))
    return tokens


@pytest.mark.parametrize("depth", [None, 0, 1, 2, 3, 5])
def test_greedy_tokens_are_the_best_of_those_allowed(depth: int | None) -> None:
    found = turn(Sampling(), depth, 40)
    assert tokens_of(found) == greedy_by_hand(40)
    assert not depth or 0 < sum(one.accepted for one in found) < sum(one.drafted for one in found)


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_looked_up_drafts_stand_where_they_are_allowed(depth: int) -> None:
    found = turn(Sampling(), depth, 60, drafter=LookedUpDrafter())
    assert tokens_of(found) == greedy_by_hand(60)
    assert 0 < sum(one.accepted for one in found) < sum(one.drafted for one in found)
    for seed in range(2):
        sampling = Sampling(TEMPERATURE, top_p=0.9, seed=seed, frequency_penalty=0.3)
        drafted = turn(sampling, depth, 40, drafter=LookedUpDrafter())
        assert tokens_of(drafted) == tokens_of(turn(sampling, None, 40))


def test_the_constraint_changes_the_tokens() -> None:
    target = TableTarget(TARGET)
    sequence = Sequence(target, None)  # type: ignore[arg-type]
    sequence.prefill(PROMPT)
    free = list(generate(target, None, sequence, Sampler(Sampling()), FixedDepth(0), never_stop, 40))  # type: ignore[arg-type]
    assert tokens_of(free) != greedy_by_hand(40)


def test_a_seed_gives_the_same_tokens_at_any_depth() -> None:
    for seed in range(3):
        sampling = Sampling(TEMPERATURE, top_p=0.9, seed=seed, frequency_penalty=0.3)
        plain = tokens_of(turn(sampling, None, 40))
        for depth in (0, 1, 2, 5):
            assert tokens_of(turn(sampling, depth, 40)) == plain, (seed, depth)


@pytest.mark.parametrize("verify", ["token", "block", "seeded"])
@pytest.mark.parametrize("temperature", [0.0, TEMPERATURE])
def test_forbidden_drafts_never_stand(verify: VerifyMode, temperature: float) -> None:
    found = turn(Sampling(temperature, seed=2), 3, 30, verify, drafter=ForbiddenDrafter())
    assert sum(one.drafted for one in found) > 60
    assert sum(one.accepted for one in found) == 0
    tokens = tokens_of(found)
    assert all(allowed(tokens[:i])[token] for i, token in enumerate(tokens))
    if not temperature:
        assert tokens == greedy_by_hand(30)


# -- the law of sampled tokens --------------------------------------------------------------------------------

FIRST, TURNS = 3, 500  # a residual drawn from p has a p-value of 1e-14 then


def enumerated_law() -> np.ndarray:
    table = np.array(TARGET, np.float64)
    law = np.zeros((V,) * FIRST)
    for tokens in itertools.product(range(V), repeat=FIRST):
        chance = 1.0
        for i, token in enumerate(tokens):
            before = [*PROMPT, *tokens[:i]]
            weights = np.exp(table[before[-2] * V + before[-1]] / TEMPERATURE) * allowed(tokens[:i])
            chance *= weights[token] / weights.sum()
        law[tokens] = chance
    return law


DRAFTERS = {"head": TableDrafter(DRAFT), "text": LookedUpDrafter()}
LAWS = [("token", None), ("token", 2), ("block", 2), ("block", 3)]


@pytest.mark.parametrize(
    ("name", "law"),
    grid(DRAFTERS, LAWS, default=lambda *case: case == ("text", ("block", 3))),
    ids=str,
)
def test_sampled_tokens_follow_the_constrained_law(name: str, law: tuple[VerifyMode, int | None]) -> None:
    (verify, depth), drafter = law, DRAFTERS[name]
    counts, accepted = np.zeros((V,) * FIRST, int), 0
    for seed in range(TURNS):
        found = turn(Sampling(TEMPERATURE, seed=seed), depth, FIRST, verify, drafter=drafter)
        counts[tuple(tokens_of(found))] += 1
        accepted += sum(one.accepted for one in found)
    assert depth is None or accepted > TURNS / 5
    assert chance_of_worse(counts.reshape(-1), enumerated_law().reshape(-1)) > FALSE_ALARM


@pytest.mark.parametrize("verify", ["token", "block"])
def test_the_first_draft_is_drawn_from_the_law_that_is_reported(verify: VerifyMode) -> None:
    """The reported law is the head's, renormalised over what may come; 40 000 draws at once follow it."""
    logits = np.array(DRAFT[:1], np.float64)
    weights = np.where(allowed([]), np.exp(logits[0] / TEMPERATURE), 0)
    law = Sampler(Sampling(TEMPERATURE, seed=1), verify, [Sums()])
    tokens, reported = law.draw_draft(mx.broadcast_to(DRAFT[:1], (40_000, V)), 0, [])
    assert reported is not None
    assert np.exp(np.array(reported.logs[0])) == pytest.approx(weights / weights.sum(), abs=1e-6)
    assert chance_of_worse(np.bincount(np.array(tokens), minlength=V), weights / weights.sum()) > FALSE_ALARM


# -- what the constraint is told ------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [None, 1, 4])
@pytest.mark.parametrize("last", [1, 7, 8, 9, 10])
def test_it_is_told_the_kept_tokens_and_no_others(depth: int | None, last: int) -> None:
    """A stop may cut a round short."""
    constraint = Sums()
    found = turn(Sampling(), depth, 40, constraint=constraint, keep=KeepUntil(last))
    assert constraint.stands == tokens_of(found) == greedy_by_hand(last)
    assert [drafts for drafts in constraint.asked if drafts] == [] or depth is not None
    assert max(map(len, constraint.asked)) == (depth or 0)


@pytest.mark.parametrize("width", [V - 2, V + 7])
def test_another_vocabulary_than_the_models(width: int) -> None:
    """What a narrower one does not know may not come; what a wider one knows more is nothing to the model."""
    found = Sums(width).process(mx.zeros((1, 2, V)), mx.array([[3]], mx.uint32))
    for row, before in zip(found[0].tolist(), ([], [3]), strict=True):  # type: ignore[arg-type]
        assert [value == 0 for value in row] == [may and i < width for i, may in enumerate(allowed(before))]
    assert max(tokens_of(turn(Sampling(), 3, 30, constraint=Sums(width)))) < min(width, V)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0, seed=3)], ids=["greedy", "seed"])
def test_a_round_waits_once_more_for_its_drafts(sampling: Sampling) -> None:
    target, policy = TableTarget(TARGET), Depths(2, 0, 3, 1, 2)
    sequence = Sequence(target, None)  # type: ignore[arg-type]
    sequence.prefill(PROMPT)
    law = Sampler(sampling, None, [Sums()])
    found = generate(target, TableDrafter(DRAFT), sequence, law, policy, never_stop, 100)  # type: ignore[arg-type]
    drafted = 0
    for _ in range(TIMED_FIRST + 3):
        with counted_evaluations() as calls:
            one = next(found)
        timed = one.drafted > 0 and drafted == TIMED_FIRST
        drafted += one.drafted > 0
        assert len(calls) == one.evaluations == (3 if timed else 1) + (one.drafted > 0), calls


def test_plain_decoding_still_waits_once_a_round() -> None:
    target = TableTarget(TARGET)
    sequence = Sequence(target, None)  # type: ignore[arg-type]
    sequence.prefill(PROMPT)
    found = generate(target, None, sequence, Sampler(Sampling(), None, [Sums()]), FixedDepth(0), never_stop, 100)  # type: ignore[arg-type]
    for _ in range(5):
        with counted_evaluations() as calls:
            one = next(found)
        assert len(calls) == one.evaluations == 1, calls
