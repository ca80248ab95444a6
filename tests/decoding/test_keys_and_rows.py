"""Keys and seeds over whole turns, and rows that no token may come from."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlxmtp.decoding import sampler as sampler_module
from mlxmtp.decoding import verify as verify_module
from mlxmtp.decoding.depth import FixedDepth
from mlxmtp.decoding.loop import generate, never_stop
from mlxmtp.decoding.sampler import Draft, Sampler, VerifyMode, no_draft
from mlxmtp.decoding.sampling import Distribution, Sampling, distribution, gumbel
from mlxmtp.decoding.sequence import Sequence
from mlxmtp.decoding.verify import Acceptance
from tests.decoding.law_tables import (
    ALARM_AT,
    FALSE_ALARM,
    SETTINGS,
    VERIFIERS,
    V,
    chain,
    chance_of_worse,
    tables,
)
from tests.scripted import Depths, TableDrafter, TableTarget, random_table, replaced

# -- seeded ---------------------------------------------------------------------------------------------------

TABLE = random_table(6, seed=1, spread=1.5)
DRAFT_TABLE = TABLE + 0.7 * random_table(6, seed=2, spread=1.5)


def run_loop(law: Sampler, depth: int | None, tokens: int) -> tuple[list[int], Depths]:
    """A turn of the real loop over tables; depth None decodes plainly."""
    target, policy = TableTarget(TABLE), Depths(depth or 0)
    sequence = Sequence(target, None)  # type: ignore[arg-type]
    sequence.prefill([1, 2])
    if depth is None:
        rounds = generate(target, None, sequence, law, FixedDepth(0), never_stop, tokens)  # type: ignore[arg-type]
    else:
        drafter = TableDrafter(DRAFT_TABLE)
        rounds = generate(target, drafter, sequence, law, policy, never_stop, tokens)  # type: ignore[arg-type]
    return [token for one in rounds for token in one.tokens], policy


def test_a_seed_gives_the_same_tokens_at_any_depth() -> None:
    for seed, setting in enumerate(SETTINGS):
        law = Sampler(Sampling(**setting, seed=seed))
        plain, _ = run_loop(law, None, tokens=24)
        for depth in (0, 1, 2, 6):
            found, policy = run_loop(law, depth, tokens=24)
            assert found == plain, (setting, depth)
            assert not depth or sum(one.accepted for one in policy.rounds) > 0, (setting, depth)


def test_another_seed_gives_other_tokens() -> None:
    found = {
        tuple(run_loop(Sampler(Sampling(1.0, seed=seed)), None, tokens=20)[0]) for seed in (0, 1, 2**32, 2**64 - 1)
    }
    assert len(found) == 4


def test_a_seeded_token_follows_the_targets_law_and_stands_as_often_as_theory_says() -> None:
    """Tokens of successive positions against p, and drafts against P(both choose x) = 1 / sum max(p_y/p_x, q_y/q_x).

    The exponential race behind Gumbel noise gives that sum; it is a little less than 1 - TV.
    """
    positions = 20_000
    law, table = Sampler(Sampling(1.0, seed=4)), tables("near", 1)
    target, proposal = (mx.array(x[:1]) for x in (table.target, table.draft))
    own = mx.broadcast_to(distribution(target, law.sampling).logs, (positions, V))
    shared = gumbel(law._key, 0, positions, V)
    tokens = np.array(mx.argmax(own + shared, axis=-1))
    drafts = np.array(mx.argmax(distribution(proposal, law.sampling).logs + shared, axis=-1))
    p, q = (chain(x[0].astype(np.float64), 1.0) for x in (table.target, table.draft))
    assert chance_of_worse(np.bincount(tokens, minlength=V), p) > FALSE_ALARM
    theory = sum(1 / np.maximum(p / p[x], q / q[x]).sum() for x in range(V))
    assert 0 < theory < np.minimum(p, q).sum()
    error = np.sqrt(theory * (1 - theory) / positions)
    assert abs((tokens == drafts).mean() - theory) < ALARM_AT * error


@pytest.mark.parametrize("verify", VERIFIERS)
@pytest.mark.parametrize("depth", [0, 1, 3])
def test_no_key_is_used_twice(verify: VerifyMode, depth: int) -> None:
    """Neither to draw with nor to split, over a turn of the real loop."""
    used: list[mx.array] = []

    def noting(function: Callable[..., mx.array]) -> Callable[..., mx.array]:
        def call(*args: Any, **options: Any) -> mx.array:
            used.append(options["key"] if "key" in options else args[0])
            return function(*args, **options)

        return call

    names = {name: noting(getattr(mx.random, name)) for name in ("uniform", "gumbel", "split")}
    with pytest.MonkeyPatch.context() as patch:
        for module in (verify_module, sampler_module):
            patch.setattr(module, "mx", replaced(mx, random=replaced(mx.random, **names)))
        run_loop(Sampler(Sampling(1.0, seed=3), verify), depth, tokens=60)
    keys = {tuple(key.tolist()) for key in used}
    assert len(used) >= 60 / (depth + 1)
    assert len(keys) == len(used)


# -- degenerate rows ------------------------------------------------------------------------------------------

SOFT = Sampling(0.8, seed=0)


def rows(*laws: list[float], sequences: int = 20_000) -> mx.array:
    """Logits [B, n, V], the same in every sequence."""
    return mx.broadcast_to(mx.array([laws]), (sequences, len(laws), V))


def judged(
    law: Sampler, logits: mx.array, proposal: mx.array, tokens: mx.array | None = None
) -> tuple[Acceptance, mx.array]:
    """The verdict on drafts drawn from proposal [B, k, V], or on given ones."""
    drawn: list[tuple[mx.array, Distribution | None]] = []
    for i in range(proposal.shape[1]):
        drawn.append(law.draw_draft(proposal[:, i], 0, [token[:, None] for token, _ in drawn]))
    drafts = mx.stack([token for token, _ in drawn], axis=1) if tokens is None else tokens
    return law.verify(logits, Draft(drafts, [q for _, q in drawn if q is not None]), 0)


A, B, C, D = [1.0, 0.0, -1.0, 0.5], [0.0, 2.0, 0.3, -1.0], [0.1, 0.1, 0.2, 0.9], [-1.0, 0.0, 0.4, 0.2]
NAN, INFINITE = [float("nan")] * V, [0.0, float("inf"), 0.0, 0.0]


@pytest.mark.parametrize("verify", ["token", "block", "seeded"])
def test_a_draft_from_the_targets_own_law_always_stands(verify: VerifyMode) -> None:
    logits = rows(A, B, C, D)
    verdict, sound = judged(Sampler(SOFT, verify), logits, logits[:, :3])
    assert mx.all(verdict.accepted == 3)
    assert mx.all(sound)


@pytest.mark.parametrize("verify", VERIFIERS)
@pytest.mark.parametrize("bad", [0, 1])
def test_a_head_with_nan_is_refused_and_the_law_stays(verify: VerifyMode, bad: int) -> None:
    """The draft from the NaN row never stands, and the first token still follows p."""
    proposal = [C, D]
    proposal[bad] = NAN
    law = Sampler(SOFT, verify)
    drawn = law.draw_draft(rows(C)[:, 0], 0, [])[0]
    tokens = mx.stack([mx.zeros_like(drawn) if bad == 0 else drawn, mx.zeros_like(drawn)], axis=1)
    verdict, sound = judged(law, rows(A, B, C), rows(*proposal), tokens)
    assert mx.all(sound)
    assert mx.max(verdict.accepted) == bad
    first = mx.where(verdict.accepted > 0, tokens[:, 0], verdict.token)
    counts = np.bincount(np.array(first), minlength=V)
    assert chance_of_worse(counts, chain(np.array(A), SOFT.temperature)) > FALSE_ALARM


@pytest.mark.parametrize("behind", [NAN, INFINITE, A], ids=["nan", "infinite", "finite"])
@pytest.mark.parametrize("verify", VERIFIERS)
def test_nothing_stands_on_a_draft_that_cannot_come(verify: VerifyMode, behind: list[float]) -> None:
    """Whatever the target's rows behind it hold: the token follows norm(max(0, p - q)) of the first row."""
    impossible = [1.0, -math.inf, -1.0, 0.5]
    law = Sampler(SOFT, verify)
    tokens = mx.broadcast_to(mx.array([[1, 0, 2]]), (20_000, 3))
    verdict, sound = judged(law, rows(impossible, behind, B, C), rows(D, D, D), tokens)
    assert mx.all(verdict.accepted == 0)
    assert mx.all(sound)
    p, q = (chain(np.array(row), SOFT.temperature) for row in (impossible, D))
    residual = np.maximum(p - q, 0)
    counts = np.bincount(np.array(verdict.token), minlength=V)
    assert chance_of_worse(counts, residual / residual.sum()) > FALSE_ALARM


@pytest.mark.parametrize("row", range(3))
@pytest.mark.parametrize("broken", [NAN, INFINITE], ids=["nan", "infinite"])
@pytest.mark.parametrize("verify", ["greedy", "token", "block", "seeded"])
def test_no_token_comes_from_a_row_that_is_not_finite(verify: Any, broken: list[float], row: int) -> None:
    """Sound exactly where every row that a token was taken from is finite; what lies behind does not matter."""
    law = Sampler(Sampling()) if verify == "greedy" else Sampler(SOFT, verify)
    logits = [A, B, C]
    logits[row] = broken
    verdict, sound = judged(law, rows(*logits), rows(D, D))
    assert mx.array_equal(sound, verdict.accepted < row)
    if verify == "token":
        assert mx.any(sound) == (row > 0)


@pytest.mark.parametrize("broken", [NAN, INFINITE], ids=["nan", "infinite"])
@pytest.mark.parametrize("sampling", [Sampling(), SOFT, Sampling(0.8, top_p=0.5, min_p=0.1, top_k=2)], ids=str)
def test_a_plain_row_that_is_not_finite_is_not_sound(broken: list[float], sampling: Sampling) -> None:
    for verify in ("token", "seeded"):
        _, sound = Sampler(sampling, verify).verify(mx.array([[broken]]), no_draft(), 0)
        assert sound.tolist() == [False]
