"""The law of the emitted tokens: the real drawing and judging functions against plain sampling, enumerated.

Both instruments of `law_tables` must find it right, and must reject verifiers that are broken on purpose.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlxmtp.decoding import sampler as sampler_module
from mlxmtp.decoding import verify as verify_module
from mlxmtp.decoding.sampler import Draft, Sampler, VerifyMode
from mlxmtp.decoding.sampling import Distribution, Sampling, distribution, fold, log_probs
from tests.decoding.law_tables import (
    ALARM_AT,
    DRAFTS,
    EMITTED,
    FALSE_ALARM,
    MISS_AT,
    ROUNDING,
    SETTINGS,
    VERIFIERS,
    DraftKind,
    Patch,
    Tables,
    V,
    chain,
    chance_of_worse,
    enumerated,
    first_at,
    in_verify,
    plain_law,
    sampled_counts,
    tables,
)
from tests.grids import cases, grid

SEQUENCES, FEW_SEQUENCES = 100_000, 40_000  # enough for the honest laws; for gross errors


@pytest.mark.parametrize(
    ("kind", "setting"),
    grid(DRAFTS, SETTINGS, default=lambda kind, setting: kind == "near" or setting == SETTINGS[-1]),
    ids=str,
)
def test_the_law_is_the_targets_own_and_drafts_stand_as_often_as_can_be(
    kind: DraftKind, setting: dict[str, Any]
) -> None:
    """One draft: 1 - TV(p, q), for both verifiers. Several: a block never stands shorter on average."""
    for depth in (1, 2, 3):
        table = tables(kind, depth)
        found = {verify: enumerated(table, Sampler(Sampling(**setting), verify), depth) for verify in VERIFIERS}
        for verify, outcomes in found.items():
            assert abs(outcomes.joint_law() - plain_law(table.target, setting)).max() < ROUNDING, (verify, depth)
        token, block = (found[verify].mean_accepted() for verify in ("token", "block"))
        if depth == 1:
            p, q = (chain(x[0].astype(np.float64), **setting) for x in (table.target, table.draft))
            assert token == pytest.approx(np.minimum(p, q).sum(), abs=ROUNDING)
            assert block == pytest.approx(token, abs=ROUNDING)
        elif kind == "near" and len(setting) == 1:
            assert block > token + 0.01
        else:
            assert block > token - ROUNDING


HONEST: list[tuple[DraftKind, dict[str, Any]]] = [
    ("near", {"temperature": 0.7}),
    ("bad", {"temperature": 1.3}),
    ("near", {"temperature": 1.3, "top_p": 0.9, "min_p": 0.05, "top_k": 3}),
]


@pytest.mark.parametrize("case", cases(range(len(HONEST)), (len(HONEST) - 1,)))
@pytest.mark.parametrize("verify", VERIFIERS)
def test_sampled_tokens_follow_the_targets_law(verify: VerifyMode, case: int) -> None:
    kind, setting = HONEST[case]
    table = tables(kind, 3)
    counts = sampled_counts(table, Sampler(Sampling(**setting, seed=1), verify), 3, SEQUENCES)
    assert chance_of_worse(counts, plain_law(table.target, setting)) > FALSE_ALARM


# -- both instruments reject what is broken -------------------------------------------------------------------


def draft_key(key: mx.array) -> mx.array:
    """The key that a round's first draft was drawn with, from its verdict's."""
    return key + mx.array([0, sampler_module._DRAFT_KEY - sampler_module._ACCEPTANCE_KEY], mx.uint32)


def residual_from_p(patch: Patch) -> None:
    """After a rejection, the token from p instead of norm(max(0, p - q))."""
    honest = verify_module._after
    patch.setattr(verify_module, "_after", lambda accepted, rest, p, key: honest(accepted, mx.zeros_like(rest), p, key))


def ratio_at_temperature_one(patch: Patch) -> None:
    """Drafted and emitted at the temperature asked for, accepted by the ratio at temperature 1."""
    honest = verify_module._probabilities

    def probabilities(target: Distribution, drafts: mx.array, draft: Distribution) -> tuple[mx.array, ...]:
        p, q, _, _ = honest(target, drafts, draft)
        hot = (Distribution(log_probs(HOT * law.logs), law.tokens) for law in (target, draft))
        *_, px, qx = honest(next(hot), drafts, next(hot))
        return p, q, px, qx

    patch.setattr(verify_module, "_probabilities", probabilities)


def bonus_without_top_p(patch: Patch) -> None:
    """The token after a draft that stands whole, from the law before the filters."""

    def without(logits: mx.array, sampling: Sampling) -> Distribution:
        law = distribution(logits, sampling)
        if logits.ndim == 2:
            return law
        bonus = distribution(logits[:, -1:], Sampling(sampling.temperature))
        return Distribution(mx.concatenate([law.logs[:, :-1], bonus.logs], axis=1))

    patch.setattr(sampler_module, "distribution", without)


def residual_with_the_drafts_noise(patch: Patch) -> None:
    """vLLM #47386: the residual drawn with the key that drew the draft."""
    in_verify(patch, split=lambda key: (mx.random.split(key)[0], draft_key(key)))


def acceptance_with_the_drafts_noise(patch: Patch) -> None:
    """The uniforms of acceptance are those behind the draft's Gumbel noise."""

    def uniform(*, shape: tuple[int, ...], key: mx.array) -> mx.array:
        return mx.random.uniform(shape=(shape[0], V), key=draft_key(key))[:, : shape[1]]

    in_verify(patch, split=lambda key: (key, mx.random.split(key)[1]), uniform=uniform)


def one_uniform_for_the_block(patch: Patch) -> None:
    """Every draft of a round judged by the same number."""

    def uniform(*, shape: tuple[int, ...], key: mx.array) -> mx.array:
        return mx.broadcast_to(mx.random.uniform(shape=(shape[0], 1), key=key), shape)

    in_verify(patch, uniform=uniform)


HOT = 1.3
BREAKABLE: dict[str, Any] = {"temperature": HOT, "top_p": 0.9}
WRONG_ARITHMETIC = [residual_from_p, ratio_at_temperature_one, bonus_without_top_p]
WRONG_NUMBERS = [
    residual_with_the_drafts_noise,
    acceptance_with_the_drafts_noise,
    one_uniform_for_the_block,
]


@pytest.mark.exhaustive
@pytest.mark.parametrize("broken", WRONG_ARITHMETIC, ids=lambda f: f.__name__)
@pytest.mark.parametrize("verify", VERIFIERS)
def test_enumeration_rejects_wrong_arithmetic(
    monkeypatch: Patch, verify: VerifyMode, broken: Callable[[Patch], None]
) -> None:
    table = tables("near", 2)
    broken(monkeypatch)
    found = enumerated(table, Sampler(Sampling(**BREAKABLE), verify), 2).joint_law()
    assert abs(found - plain_law(table.target, BREAKABLE)).max() > 1000 * ROUNDING


@pytest.mark.parametrize("factor", cases([1.01, 0.99, 1.001], default=[1.001]))
@pytest.mark.parametrize("verify", VERIFIERS)
def test_enumeration_rejects_a_biased_acceptance(verify: VerifyMode, factor: float) -> None:
    table = tables("near", 2)
    law = Sampler(Sampling(**BREAKABLE), verify)
    found = enumerated(table, law, 2, uniform=lambda u: u / factor).joint_law()
    assert abs(found - plain_law(table.target, BREAKABLE)).max() > 10 * ROUNDING


@pytest.mark.exhaustive
@pytest.mark.parametrize("broken", WRONG_ARITHMETIC + WRONG_NUMBERS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("verify", VERIFIERS)
def test_sampling_rejects_gross_errors(monkeypatch: Patch, verify: VerifyMode, broken: Callable[[Patch], None]) -> None:
    table = tables("bad", 2)
    broken(monkeypatch)
    counts = sampled_counts(table, Sampler(Sampling(**BREAKABLE, seed=1), verify), 2, FEW_SEQUENCES)
    assert chance_of_worse(counts, plain_law(table.target, BREAKABLE)) < FALSE_ALARM


def sensitive_tables(depth: int) -> Tables:
    """Two likely tokens of which the draft knows one: half of the target's mass goes through rejection."""
    rng = np.random.default_rng(0)
    size = first_at(EMITTED + depth)
    target = np.full((size, V), -np.inf)
    target[:, :2] = rng.normal(0, 0.1, (size, 2))
    draft = np.full((size, V), -np.inf)
    likely = rng.integers(0, 2, size)
    draft[np.arange(size), likely], draft[np.arange(size), 1 - likely] = np.log(0.99), np.log(0.01)
    return Tables(target.astype(np.float32), draft.astype(np.float32))


@pytest.mark.exhaustive
@pytest.mark.parametrize("verify", VERIFIERS)
def test_sampling_rejects_an_acceptance_biased_by_one_per_cent(monkeypatch: Patch, verify: VerifyMode) -> None:
    """A z-test in the direction in which the enumerated biased law lies, with as many sequences as its power needs."""
    table, law = sensitive_tables(2), Sampler(Sampling(1.0, seed=1), verify)
    plain = plain_law(table.target, {"temperature": 1.0})
    biased = enumerated(table, law, 2, uniform=lambda u: u / 1.01).joint_law()
    direction = np.divide(biased - plain, plain, out=np.zeros_like(plain), where=plain > 0)
    shift = (direction * (biased - plain)).sum()  # of the mean of `direction`; its variance under `plain`, too
    sequences = int(np.ceil((ALARM_AT + MISS_AT) ** 2 / shift))

    def standard_errors() -> float:
        counts = sampled_counts(table, law, 2, sequences)
        return float((direction * counts).sum() / np.sqrt(sequences * shift))

    assert abs(standard_errors()) < ALARM_AT
    in_verify(monkeypatch, uniform=lambda **options: mx.random.uniform(**options) / 1.01)
    assert standard_errors() > ALARM_AT


# -- one sequence at a time, as the loop runs it --------------------------------------------------------------

ROUNDS, ALONE = 12_000, 200  # in one go, and those of them that are also run one by one


def in_one_go(a_round: Callable[[Any], mx.array]) -> mx.array:
    """What `a_round` gives for each number of a round, with the keys of those numbers."""

    def folded(key: mx.array, number: mx.array, purpose: int = 0) -> mx.array:
        return mx.stack([fold(key, n, purpose) for n in range(ROUNDS)])[number]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampler_module, "fold", folded)
        return mx.vmap(a_round)(mx.arange(ROUNDS))


@pytest.mark.parametrize(
    "broken",
    cases([None, residual_with_the_drafts_noise, acceptance_with_the_drafts_noise], (None,)),
    ids=lambda x: getattr(x, "__name__", None),
)
@pytest.mark.parametrize("verify", VERIFIERS)
def test_successive_rounds_of_one_sequence_are_independent(
    monkeypatch: Patch, verify: VerifyMode, broken: Callable[[Patch], None] | None
) -> None:
    """Pairs of tokens from neighbouring rounds follow the product law; one row at a time, as generation runs."""
    if broken:
        broken(monkeypatch)
    law, single = Sampler(Sampling(1.0, seed=2), verify), [0.1, 0.2, 0.3, 0.4]
    own, proposal = mx.log(mx.array([single])), mx.log(mx.array([single[::-1]]))
    logits = mx.stack([own, own], axis=1)

    def emitted(number: Any) -> mx.array:
        token, q = law.draw_draft(proposal, number, [])
        assert q is not None
        verdict, _ = law.verify(logits, Draft(token[:, None], [q]), number)
        return mx.where(verdict.accepted > 0, token, verdict.token)

    found = np.array(in_one_go(emitted)[:, 0])
    assert found[:ALONE].tolist() == mx.concatenate([emitted(number) for number in range(ALONE)]).tolist()
    pairs = np.bincount(found[0::2] * V + found[1::2], minlength=V * V)
    rejected = chance_of_worse(pairs, np.outer(single, single).reshape(-1)) < FALSE_ALARM
    assert rejected is bool(broken)
