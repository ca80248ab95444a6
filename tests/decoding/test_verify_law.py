"""The law of the emitted tokens: the real drawing and judging functions against plain sampling, enumerated.

Target and draft are tables over all prefixes of a small vocabulary. Two instruments look at the same functions:

- `exact_law` enumerates a round: every draft with its probability, the uniforms cell by cell (a verdict is a step
  function of each), and the residual's law as it reaches the categorical. It knows no formula of the algorithms, is
  exact to float32 rounding, and takes the random numbers to be independent.
- `sampled_counts` runs many sequences with real keys, so that a number used twice shows. Its tests raise a false
  alarm with probability 1e-6 (seeds are fixed, so that a run's outcome is too) and miss an acceptance biased by one
  per cent with probability 1e-3.

Both must reject verifiers that are broken on purpose.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import mlx.core as mx
import numpy as np
import pytest

from mlxmtp.decoding import law as law_module
from mlxmtp.decoding import verify as verify_module
from mlxmtp.decoding.law import NOTHING, Draft, Law, Moment, Verify
from mlxmtp.decoding.loop import decode_plainly, speculate
from mlxmtp.decoding.sampling import Sampling, distribution, log_probs
from mlxmtp.decoding.sequence import Sequence
from mlxmtp.decoding.verify import Verdict
from tests.scripted import (
    Depths,
    TableDrafter,
    TableTarget,
    chance_of_more,
    keep_all,
    random_table,
    replaced,
)

V, EMITTED = 4, 3  # vocabulary; how many tokens the joint law is over
ROUNDING = 3e-6  # of float32 arithmetic on a joint law of three tokens
FALSE_ALARM, ALARM_AT = 1e-6, 4.892  # two-sided, and the standard errors that it means
MISS_AT = 3.090  # standard errors of a miss with probability 1e-3
STANDS, FALLS = -1e9, 1e9  # uniforms that no verdict can hold against a draft, and that none can overlook
SEQUENCES, FEW_SEQUENCES = 100_000, 40_000  # enough for the honest laws; for gross errors

DraftKind = Literal["near", "bad", "equal", "one-hot", "disjoint"]
DRAFTS: tuple[DraftKind, ...] = ("near", "bad", "equal", "one-hot", "disjoint")
VERIFIERS: tuple[Verify, ...] = ("token", "block")
SETTINGS = [
    dict(temperature=temperature, **filters)
    for temperature in (0.7, 1.3)
    for filters in ({}, {"top_k": 2}, {"top_p": 0.8}, {"min_p": 0.3}, {"top_p": 0.9, "min_p": 0.05, "top_k": 3})
]


# -- prefixes as numbers --------------------------------------------------------------------------------------


def child(node: Any, token: Any) -> Any:
    """The prefix `node` with one token more: the root is 0, the children of n are V n + 1, ..., V n + V."""
    return node * V + 1 + token


def first_at(depth: int) -> int:
    """The first prefix of `depth` tokens; there are V ** depth of them."""
    return (V**depth - 1) // (V - 1)


@dataclass(frozen=True)
class Tables:
    """Logits [prefixes, V] of the token after each prefix, for the target and the draft."""

    target: np.ndarray
    draft: np.ndarray


def tables(kind: DraftKind, depth: int, seed: int = 0) -> Tables:
    """Random tables for prefixes of up to EMITTED - 1 + depth tokens."""
    rng = np.random.default_rng([seed, DRAFTS.index(kind)])
    size = first_at(EMITTED + depth)
    target = rng.normal(0, 1.2, (size, V))
    noise = rng.normal(0, 1.2, (size, V))
    draft = {
        "near": target + 0.5 * noise,
        "bad": -2 * target + noise,
        "equal": target,
        "one-hot": np.where(noise == noise.max(axis=1, keepdims=True), 0, -np.inf),
        "disjoint": np.where(np.arange(V) % 2, noise, -np.inf),
    }[kind]
    if kind == "disjoint":
        target = np.where(np.arange(V) % 2, -np.inf, target)
    return Tables(target.astype(np.float32), draft.astype(np.float32))


# -- the law that must come out -------------------------------------------------------------------------------


def plain_law(logits: np.ndarray, setting: dict[str, Any]) -> np.ndarray:
    """The joint law [V ** EMITTED] of plain sampling, in float64: filters in mlx-lm's order, then temperature."""
    p = chain(logits.astype(np.float64), **setting)
    law = np.ones(1)
    for depth in range(EMITTED):
        law = (law[:, None] * p[first_at(depth) : first_at(depth + 1)]).reshape(-1)
    return law


def chain(logits: np.ndarray, temperature: float, top_p: float = 1, min_p: float = 0, top_k: int = V) -> np.ndarray:
    """Sampling probabilities [..., V], written anew: nothing here comes from the package."""
    p = np.exp(logits - logits.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    order = np.argsort(-p, axis=-1)
    ranked = np.take_along_axis(p, order, axis=-1)
    keep = (np.cumsum(ranked, axis=-1) - ranked < top_p) & (ranked >= min_p * ranked[..., :1])
    keep &= np.arange(V) < top_k
    kept = np.zeros(p.shape, bool)
    np.put_along_axis(kept, order, keep, axis=-1)
    p = np.where(kept, p, 0) ** (1 / temperature)
    return p / p.sum(axis=-1, keepdims=True)


# -- instrument 1: exact enumeration --------------------------------------------------------------------------


class Controlled:
    """`mx.random` with given uniforms, and a categorical that notes its law instead of drawing."""

    def __init__(self) -> None:
        self.uniforms = mx.zeros((0,))
        self.law = mx.zeros((0,))

    def uniform(self, *, shape: Any, key: mx.array) -> mx.array:
        assert tuple(shape) == self.uniforms.shape
        return self.uniforms

    def categorical(self, logits: mx.array, *, key: mx.array) -> mx.array:
        self.law = log_probs(logits)
        return mx.argmax(logits, axis=-1)


@dataclass(frozen=True)
class Outcomes:
    """All that rounds can do: row i starts at prefix roots[i], ends at ends[i, x] with probability chance[i, x]."""

    roots: np.ndarray
    accepted: np.ndarray
    ends: np.ndarray
    chance: np.ndarray

    def joint_law(self) -> np.ndarray:
        """The law [V ** EMITTED] of the tokens that rounds emit one after the other."""
        step = np.zeros((first_at(EMITTED), first_at(EMITTED + 1)))
        np.add.at(step, (self.roots[:, None], self.ends), self.chance)
        reached = np.zeros(first_at(EMITTED + 1))
        reached[0] = 1
        for prefix in range(first_at(EMITTED)):
            reached += reached[prefix] * step[prefix]
        return reached[first_at(EMITTED) :]

    def mean_accepted(self) -> float:
        """Drafts that stand in a first round, on average."""
        first = self.roots == 0
        return float((self.chance[first].sum(axis=1) * self.accepted[first]).sum())


def enumerated(table: Tables, law: Law, depth: int, uniform: Callable[[mx.array], mx.array] = lambda u: u) -> Outcomes:
    """Every outcome of every round of `depth` drafts; `uniform` may spoil the numbers that acceptance looks at."""
    drafts = mx.array(list(itertools.product(range(V), repeat=depth)), mx.int32)
    roots = mx.repeat(mx.arange(first_at(EMITTED)), len(drafts))
    drafts = mx.tile(drafts, (first_at(EMITTED), 1))
    logits, draft, chance = along(table, law, roots, drafts)
    possible = mx.array(np.flatnonzero(np.array(chance)))
    roots, drafts, chance, logits = (x[possible] for x in (roots, drafts, chance, logits))
    draft = Draft(drafts, tuple(q[possible] for q in draft.laws))

    numbers = Controlled()
    random = replaced(mx.random, uniform=numbers.uniform, categorical=numbers.categorical)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify_module, "mx", replaced(mx, random=random))

        def judge(uniforms: mx.array) -> tuple[mx.array, mx.array]:
            numbers.uniforms = uniform(uniforms)
            verdict, _ = law.judge(logits, draft, Moment(0, 0))
            return verdict.accepted, mx.exp(numbers.law)

        edges = thresholds(lambda u: judge(u)[0], drafts.shape, law.verify)
        parts = []
        for above in itertools.product((False, True), repeat=depth):
            inside = mx.where(mx.array(above), (edges + 1) / 2, edges / 2)
            share = mx.where(mx.array(above), 1 - edges, edges).prod(axis=1) * chance
            accepted, token = judge(inside)
            parts.append((roots, accepted, ended(roots, drafts, accepted, mx.arange(V)), share[:, None] * token))
        return Outcomes(*(np.array(mx.concatenate(column)) for column in zip(*parts, strict=True)))


def thresholds(accepted: Callable[[mx.array], mx.array], shape: tuple[int, ...], verify: Verify) -> mx.array:
    """For each row and draft, the uniform [B, k] below which it stands, by bisection.

    The other uniforms are put where this one alone decides. Behind it nothing stands; before it all do for the
    token-level test, which takes a leading run, and none for a block, which takes the last that stands.
    """
    rows, depth = shape
    found = []
    for i in range(depth):
        low, high = mx.zeros((rows, 1)), mx.ones((rows, 1))
        before = mx.full((rows, i), STANDS if verify == "token" else FALLS)
        behind = mx.full((rows, depth - i - 1), FALLS)
        for _ in range(24):
            middle = (low + high) / 2
            stands = (accepted(mx.concatenate([before, middle, behind], axis=1)) == i + 1)[:, None]
            low, high = mx.where(stands, middle, low), mx.where(stands, high, middle)
        found.append(high)
    edges = mx.concatenate(found, axis=1)
    mx.eval(edges)
    return edges


def along(table: Tables, law: Law, roots: mx.array, drafts: mx.array) -> tuple[mx.array, Draft, mx.array]:
    """Given drafts [B, k]: the target's logits [B, k + 1, V] along them, their laws, their probability [B]."""
    target, proposal = mx.array(table.target), mx.array(table.draft)
    node, chance, rows, laws = roots, mx.ones(roots.shape), [target[roots]], []
    for step in range(drafts.shape[1]):
        _, q = law.draw(proposal[node], Moment(0, 0), step)
        laws.append(q)
        chance = chance * mx.exp(mx.take_along_axis(q, drafts[:, step, None], axis=1)[:, 0])
        node = child(node, drafts[:, step])
        rows.append(target[node])
    return mx.stack(rows, axis=1), Draft(drafts, tuple(laws)), chance


def ended(roots: mx.array, drafts: mx.array, accepted: mx.array, token: mx.array) -> mx.array:
    """The prefixes [B, ...] after a round: roots [B], `accepted` [B] of the drafts [B, k], token; EMITTED at most."""
    node = roots
    for i in range(drafts.shape[1]):
        node = mx.where(i < accepted, child(node, drafts[:, i]), node)
    node = child(node, token) if token.shape == node.shape else child(node[:, None], token)
    for _ in range(drafts.shape[1]):
        node = mx.where(node < first_at(EMITTED + 1), node, (node - 1) // V)
    return node


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
@pytest.mark.parametrize("kind", DRAFTS)
@pytest.mark.parametrize("verify", VERIFIERS)
def test_the_law_is_the_targets_own(verify: Verify, kind: DraftKind, setting: dict[str, Any]) -> None:
    for depth in (1, 2, 3):
        table = tables(kind, depth)
        found = enumerated(table, Law(Sampling(**setting), verify), depth).joint_law()
        assert abs(found - plain_law(table.target, setting)).max() < ROUNDING, depth


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
@pytest.mark.parametrize("kind", DRAFTS)
def test_how_many_drafts_stand(kind: DraftKind, setting: dict[str, Any]) -> None:
    """One draft: 1 - TV(p, q), for both verifiers. Several: a block never stands shorter on average."""
    for depth in (1, 2, 3):
        table = tables(kind, depth)
        token, block = (
            enumerated(table, Law(Sampling(**setting), verify), depth).mean_accepted() for verify in VERIFIERS
        )
        if depth == 1:
            p, q = (chain(x[0].astype(np.float64), **setting) for x in (table.target, table.draft))
            assert token == pytest.approx(np.minimum(p, q).sum(), abs=ROUNDING)
            assert block == pytest.approx(token, abs=ROUNDING)
        elif kind == "near" and len(setting) == 1:
            assert block > token + 0.01
        else:
            assert block > token - ROUNDING


# -- instrument 2: many sequences with real keys --------------------------------------------------------------


def sampled_counts(table: Tables, law: Law, depth: int, sequences: int) -> np.ndarray:
    """How often each joint outcome [V ** EMITTED] came out of rounds drawn and judged with the law's own keys."""
    target, proposal = mx.array(table.target), mx.array(table.draft)
    node = np.zeros(sequences, np.int32)
    for number in range(EMITTED):  # a round emits one token at least
        running = np.flatnonzero(node < first_at(EMITTED))
        roots = at = mx.array(node[running])
        moment = Moment(number, number)
        tokens, laws, rows = [], [], [target[roots]]
        for step in range(depth):
            token, q = law.draw(proposal[at], moment, step)
            tokens.append(token.astype(mx.int32))
            laws.append(q)
            at = child(at, tokens[-1])
            rows.append(target[at])
        drafts = mx.stack(tokens, axis=1)
        verdict, sound = law.judge(mx.stack(rows, axis=1), Draft(drafts, tuple(laws)), moment)
        node[running] = np.array(ended(roots, drafts, verdict.accepted, verdict.token.astype(mx.int32)))
        assert mx.all(sound)
    return np.bincount(node - first_at(EMITTED), minlength=V**EMITTED)


def chance_of_worse(counts: np.ndarray, expected: np.ndarray) -> float:
    """The chi-square test's p-value; 0 where something came out that cannot."""
    count = expected * counts.sum()
    seen = expected > 0
    if counts[~seen].any():
        return 0.0
    rare = seen & (count < 20)
    observed = np.append(counts[seen & ~rare], counts[rare].sum())
    wanted = np.append(count[seen & ~rare], count[rare].sum())
    value = ((observed - wanted)[wanted > 0] ** 2 / wanted[wanted > 0]).sum()
    return chance_of_more(float(value), int((wanted > 0).sum()) - 1)


HONEST: list[tuple[DraftKind, dict[str, Any]]] = [
    ("near", {"temperature": 0.7}),
    ("bad", {"temperature": 1.3}),
    ("near", {"temperature": 1.3, "top_p": 0.9, "min_p": 0.05, "top_k": 3}),
]


@pytest.mark.parametrize(("kind", "setting"), HONEST, ids=str)
@pytest.mark.parametrize("verify", VERIFIERS)
def test_sampled_tokens_follow_the_targets_law(verify: Verify, kind: DraftKind, setting: dict[str, Any]) -> None:
    table = tables(kind, 3)
    counts = sampled_counts(table, Law(Sampling(**setting, seed=1), verify), 3, SEQUENCES)
    assert chance_of_worse(counts, plain_law(table.target, setting)) > FALSE_ALARM


# -- both instruments reject what is broken -------------------------------------------------------------------

Patch = pytest.MonkeyPatch


def draft_key(key: mx.array) -> mx.array:
    """The key that a round's first draft was drawn with, from its verdict's."""
    return key + mx.array([0, law_module._DRAFTS - law_module._VERDICT], mx.uint32)


def in_verify(patch: Patch, **names: Any) -> None:
    patch.setattr(verify_module, "mx", replaced(mx, random=replaced(mx.random, **names)))


def residual_from_p(patch: Patch) -> None:
    """After a rejection, the token from p instead of norm(max(0, p - q))."""
    honest = verify_module._residual
    patch.setattr(verify_module, "_residual", lambda p, q, key, weight=1.0: honest(p, mx.zeros_like(q), key))


def ratio_at_temperature_one(patch: Patch) -> None:
    """Drafted and emitted at the temperature asked for, accepted by the ratio at temperature 1."""
    honest = verify_module._probabilities

    def probabilities(target: mx.array, drafts: mx.array, draft: mx.array) -> tuple[mx.array, ...]:
        p, q, _, _ = honest(target, drafts, draft)
        *_, px, qx = honest(log_probs(HOT * target), drafts, log_probs(HOT * draft))
        return p, q, px, qx

    patch.setattr(verify_module, "_probabilities", probabilities)


def bonus_without_top_p(patch: Patch) -> None:
    """The token after a draft that stands whole, from the law before the filters."""

    def without(logits: mx.array, sampling: Sampling) -> mx.array:
        law = distribution(logits, sampling)
        if logits.ndim == 2:
            return law
        return mx.concatenate([law[:, :-1], distribution(logits[:, -1:], Sampling(sampling.temperature))], axis=1)

    patch.setattr(law_module, "laws", replaced(law_module.laws, distribution=without))


def residual_with_the_drafts_noise(patch: Patch) -> None:
    """vLLM #47386: the residual drawn with the key that drew the draft."""
    in_verify(patch, split=lambda key: (mx.random.split(key)[0], draft_key(key)))


def acceptance_with_the_drafts_noise(patch: Patch) -> None:
    """The uniforms of acceptance are those behind the draft's Gumbel noise."""

    def uniform(*, shape: tuple[int, ...], key: mx.array) -> mx.array:
        behind = (shape[0], V) if shape[0] > 1 else shape  # MLX inverts a single uniform for a single row
        return mx.random.uniform(shape=behind, key=draft_key(key))[:, : shape[1]]

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


@pytest.mark.parametrize("broken", WRONG_ARITHMETIC, ids=lambda f: f.__name__)
@pytest.mark.parametrize("verify", VERIFIERS)
def test_enumeration_rejects_wrong_arithmetic(
    monkeypatch: Patch, verify: Verify, broken: Callable[[Patch], None]
) -> None:
    table = tables("near", 2)
    broken(monkeypatch)
    found = enumerated(table, Law(Sampling(**BREAKABLE), verify), 2).joint_law()
    assert abs(found - plain_law(table.target, BREAKABLE)).max() > 300 * ROUNDING


@pytest.mark.parametrize("factor", [1.01, 0.99, 1.001])
@pytest.mark.parametrize("verify", VERIFIERS)
def test_enumeration_rejects_a_biased_acceptance(verify: Verify, factor: float) -> None:
    table = tables("near", 2)
    law = Law(Sampling(**BREAKABLE), verify)
    found = enumerated(table, law, 2, uniform=lambda u: u / factor).joint_law()
    assert abs(found - plain_law(table.target, BREAKABLE)).max() > 10 * ROUNDING


@pytest.mark.parametrize("broken", WRONG_ARITHMETIC + WRONG_NUMBERS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("verify", VERIFIERS)
def test_sampling_rejects_gross_errors(
    monkeypatch: Patch, verify: Verify, broken: Callable[[Patch], None]
) -> None:
    table = tables("bad", 2)
    broken(monkeypatch)
    counts = sampled_counts(table, Law(Sampling(**BREAKABLE, seed=1), verify), 2, FEW_SEQUENCES)
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


@pytest.mark.parametrize("verify", VERIFIERS)
def test_sampling_rejects_an_acceptance_biased_by_one_per_cent(monkeypatch: Patch, verify: Verify) -> None:
    """A z-test in the direction in which the enumerated biased law lies, with as many sequences as its power needs."""
    table, law = sensitive_tables(2), Law(Sampling(1.0, seed=1), verify)
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


@pytest.mark.parametrize(
    ("broken", "rounds"),
    [(None, 3000), (residual_with_the_drafts_noise, 1500), (acceptance_with_the_drafts_noise, 1500)],
    ids=lambda x: getattr(x, "__name__", x and str(x)),
)
@pytest.mark.parametrize("verify", VERIFIERS)
def test_successive_rounds_of_one_sequence_are_independent(
    monkeypatch: Patch, verify: Verify, broken: Callable[[Patch], None] | None, rounds: int
) -> None:
    """Pairs of tokens from neighbouring rounds follow the product law.

    For a single row [1, V] MLX's categorical takes another path (one uniform, inverted) than for many; this is the
    one that generation takes.
    """
    if broken:
        broken(monkeypatch)
    law, single = Law(Sampling(1.0, seed=2), verify), [0.1, 0.2, 0.3, 0.4]
    own, proposal = mx.log(mx.array([single])), mx.log(mx.array([single[::-1]]))
    logits, tokens = mx.stack([own, own], axis=1), []
    for number in range(rounds):
        moment = Moment(number, number)
        token, q = law.draw(proposal, moment, 0)
        assert q is not None
        verdict, _ = law.judge(logits, Draft(token[:, None], (q,)), moment)
        tokens.append(mx.where(verdict.accepted > 0, token, verdict.token))
        if number % 500 == 499:
            mx.eval(tokens[-500:])
    found = np.array(mx.concatenate(tokens))
    pairs = np.bincount(found[0::2] * V + found[1::2], minlength=V * V)
    rejected = chance_of_worse(pairs, np.outer(single, single).reshape(-1)) < FALSE_ALARM
    assert rejected is bool(broken)


@pytest.mark.parametrize("verify", VERIFIERS)
@pytest.mark.parametrize("depth", [0, 1, 3])
def test_no_key_is_used_twice(verify: Verify, depth: int) -> None:
    used: list[mx.array] = []

    def noting(function: Callable[..., mx.array]) -> Callable[..., mx.array]:
        def call(*args: Any, key: mx.array, **options: Any) -> mx.array:
            used.append(key)
            return function(*args, key=key, **options)

        return call

    names = {name: noting(getattr(mx.random, name)) for name in ("uniform", "categorical", "gumbel")}
    with pytest.MonkeyPatch.context() as patch:
        for module in (verify_module, law_module):
            patch.setattr(module, "mx", replaced(mx, random=replaced(mx.random, **names)))
        run_loop(Law(Sampling(1.0, seed=3), verify), depth, tokens=60)
    keys = {tuple(key.tolist()) for key in used}
    assert len(used) >= 60 / (depth + 1)
    assert len(keys) == len(used)


# -- seeded ---------------------------------------------------------------------------------------------------

TABLE = random_table(6, seed=1, spread=1.5)
DRAFT_TABLE = TABLE + 0.7 * random_table(6, seed=2, spread=1.5)


def run_loop(law: Law, depth: int | None, tokens: int) -> tuple[list[int], Depths]:
    """A turn of the real loop over tables; depth None decodes plainly."""
    target, policy = TableTarget(TABLE), Depths(depth or 0)
    sequence = Sequence(target, None)  # type: ignore[arg-type]
    sequence.prefill([1, 2])
    if depth is None:
        rounds = decode_plainly(target, sequence, law, keep_all, tokens)  # type: ignore[arg-type]
    else:
        drafter = TableDrafter(DRAFT_TABLE)
        rounds = speculate(target, drafter, sequence, law, policy, keep_all, tokens)  # type: ignore[arg-type]
    return [token for one in rounds for token in one.tokens], policy


@pytest.mark.parametrize("depth", range(7))
def test_a_seed_gives_the_same_tokens_at_any_depth(depth: int) -> None:
    for seed, setting in enumerate(SETTINGS):
        law = Law(Sampling(**setting, seed=seed))
        plain, _ = run_loop(law, None, tokens=40)
        found, policy = run_loop(law, depth, tokens=40)
        assert found == plain
        assert not depth or sum(one.accepted for one in policy.rounds) > 0


def test_another_seed_gives_other_tokens() -> None:
    found = {tuple(run_loop(Law(Sampling(1.0, seed=seed)), None, tokens=20)[0]) for seed in (0, 1, 2**32, 2**64 - 1)}
    assert len(found) == 4


def test_a_seeded_token_follows_the_targets_law_and_stands_as_often_as_theory_says() -> None:
    """Tokens of successive positions against p, and drafts against P(both choose x) = 1 / sum max(p_y/p_x, q_y/q_x).

    The exponential race behind Gumbel noise gives that sum; it is a little less than 1 - TV.
    """
    positions = 20_000
    law, table = Law(Sampling(1.0, seed=4)), tables("near", 1)
    target, proposal = (mx.array(x[:1]) for x in (table.target, table.draft))
    own = mx.broadcast_to(distribution(target, law.sampling), (positions, V))
    shared = law._noise(0, positions, own)
    tokens = np.array(mx.argmax(own + shared, axis=-1))
    drafts = np.array(mx.argmax(distribution(proposal, law.sampling) + shared, axis=-1))
    p, q = (chain(x[0].astype(np.float64), 1.0) for x in (table.target, table.draft))
    assert chance_of_worse(np.bincount(tokens, minlength=V), p) > FALSE_ALARM
    theory = sum(1 / np.maximum(p / p[x], q / q[x]).sum() for x in range(V))
    assert 0 < theory < np.minimum(p, q).sum()
    error = np.sqrt(theory * (1 - theory) / positions)
    assert abs((tokens == drafts).mean() - theory) < ALARM_AT * error


# -- degenerate rows ------------------------------------------------------------------------------------------

SOFT = Sampling(0.8, seed=0)


def rows(*laws: list[float], sequences: int = 20_000) -> mx.array:
    """Logits [B, n, V], the same in every sequence."""
    return mx.broadcast_to(mx.array([laws]), (sequences, len(laws), V))


def judged(law: Law, logits: mx.array, proposal: mx.array, tokens: mx.array | None = None) -> tuple[Verdict, mx.array]:
    """The verdict on drafts drawn from proposal [B, k, V], or on given ones."""
    drawn = [law.draw(proposal[:, i], Moment(0, 0), i) for i in range(proposal.shape[1])]
    drafts = mx.stack([token for token, _ in drawn], axis=1) if tokens is None else tokens
    return law.judge(logits, Draft(drafts, tuple(q for _, q in drawn if q is not None)), Moment(0, 0))


A, B, C, D = [1.0, 0.0, -1.0, 0.5], [0.0, 2.0, 0.3, -1.0], [0.1, 0.1, 0.2, 0.9], [-1.0, 0.0, 0.4, 0.2]
NAN, INFINITE = [float("nan")] * V, [0.0, float("inf"), 0.0, 0.0]


@pytest.mark.parametrize("verify", ["token", "block", "seeded"])
def test_a_draft_from_the_targets_own_law_always_stands(verify: Verify) -> None:
    logits = rows(A, B, C, D)
    verdict, sound = judged(Law(SOFT, verify), logits, logits[:, :3])
    assert mx.all(verdict.accepted == 3)
    assert mx.all(sound)


@pytest.mark.parametrize("verify", VERIFIERS)
@pytest.mark.parametrize("bad", [0, 1])
def test_a_head_with_nan_is_refused_and_the_law_stays(verify: Verify, bad: int) -> None:
    """The draft from the NaN row never stands, and the first token still follows p."""
    proposal = [C, D]
    proposal[bad] = NAN
    law = Law(SOFT, verify)
    drawn = law.draw(rows(C)[:, 0], Moment(0, 0), 0)[0]
    tokens = mx.stack([mx.zeros_like(drawn) if bad == 0 else drawn, mx.zeros_like(drawn)], axis=1)
    verdict, sound = judged(law, rows(A, B, C), rows(*proposal), tokens)
    assert mx.all(sound)
    assert mx.max(verdict.accepted) == bad
    first = mx.where(verdict.accepted > 0, tokens[:, 0], verdict.token)
    counts = np.bincount(np.array(first), minlength=V)
    assert chance_of_worse(counts, chain(np.array(A), SOFT.temperature)) > FALSE_ALARM


@pytest.mark.parametrize("row", range(3))
@pytest.mark.parametrize("broken", [NAN, INFINITE], ids=["nan", "infinite"])
@pytest.mark.parametrize("verify", ["greedy", "token", "block", "seeded"])
def test_no_token_comes_from_a_row_that_is_not_finite(verify: Any, broken: list[float], row: int) -> None:
    """Sound exactly where every row that a token was taken from is finite; what lies behind does not matter."""
    law = Law(Sampling()) if verify == "greedy" else Law(SOFT, verify)
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
        _, sound = Law(sampling, verify).judge(mx.array([[broken]]), NOTHING, Moment(0, 0))
        assert sound.tolist() == [False]
