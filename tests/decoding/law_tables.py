"""Instruments that measure the law of emitted tokens, over tables of all prefixes of a small vocabulary.

- `enumerated` enumerates a round: every draft with its probability, the uniforms cell by cell (a verdict is a step
  function of each), and the residual's law as it is drawn from. It knows no formula of the algorithms, is exact to
  float32 rounding, and takes the random numbers to be independent.
- `sampled_counts` runs many sequences with real keys, so that a number used twice shows. Its tests raise a false
  alarm with probability 1e-6 (seeds are fixed, so that a run's outcome is too) and miss an acceptance biased by one
  per cent with probability 1e-3.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import mlx.core as mx
import numpy as np
import pytest

from mlxmtp.decoding import verify as verify_module
from mlxmtp.decoding.sampler import Draft, Sampler, VerifyMode
from mlxmtp.decoding.sampling import Distribution, log_probs
from tests.scripted import chance_of_more, replaced

V, EMITTED = 4, 3  # vocabulary; how many tokens the joint law is over
ROUNDING = 1e-6  # of float32 arithmetic on a joint law of three tokens; 1.4e-7 was the worst seen
FALSE_ALARM, ALARM_AT = 1e-6, 4.892  # two-sided, and the standard errors that it means
MISS_AT = 3.090  # standard errors of a miss with probability 1e-3
STANDS, FALLS = -1e9, 1e9  # uniforms that no verdict can hold against a draft, and that none can overlook

DraftKind = Literal["near", "bad", "equal", "one-hot", "disjoint"]
DRAFTS: tuple[DraftKind, ...] = ("near", "bad", "equal", "one-hot", "disjoint")
VERIFIERS: tuple[VerifyMode, ...] = ("token", "block")
SETTINGS = [
    dict(temperature=temperature, **filters)
    for temperature in (0.7, 1.3)
    for filters in ({}, {"top_k": 2}, {"top_p": 0.8}, {"min_p": 0.3}, {"top_p": 0.9, "min_p": 0.05, "top_k": 3})
]


Patch = pytest.MonkeyPatch


def in_verify(patch: Patch, **names: Any) -> None:
    patch.setattr(verify_module, "mx", replaced(mx, random=replaced(mx.random, **names)))


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


def whole(law: Distribution, vocabulary: int = V) -> mx.array:
    """The log-probabilities [..., V] of all tokens."""
    return law.at_tokens_of(Distribution(mx.zeros(vocabulary)))


class Controlled:
    """Given uniforms, and a draw that notes its law instead of drawing."""

    def __init__(self, vocabulary: int = V) -> None:
        self.uniforms = mx.zeros((0,))
        self.law = mx.zeros((0,))
        self._vocabulary = vocabulary

    def uniform(self, *, shape: Any, key: mx.array) -> mx.array:
        assert tuple(shape) == self.uniforms.shape
        return self.uniforms

    def draw(self, law: Distribution, key: mx.array) -> mx.array:
        self.law = log_probs(whole(law, self._vocabulary))
        return law.best(law.logs)


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


def enumerated(
    table: Tables, law: Sampler, depth: int, uniform: Callable[[mx.array], mx.array] = lambda u: u
) -> Outcomes:
    """Every outcome of every round of `depth` drafts; `uniform` may spoil the numbers that acceptance looks at."""
    drafts = mx.array(list(itertools.product(range(V), repeat=depth)), mx.int32)
    roots = mx.repeat(mx.arange(first_at(EMITTED)), len(drafts))
    drafts = mx.tile(drafts, (first_at(EMITTED), 1))
    logits, draft, chance = along(table, law, roots, drafts)
    possible = mx.array(np.flatnonzero(np.array(chance)))
    roots, drafts, chance, logits = (x[possible] for x in (roots, drafts, chance, logits))
    draft = Draft(drafts, [q.map(lambda rows: rows[possible]) for q in draft.distributions])

    numbers = Controlled()
    with pytest.MonkeyPatch.context() as patch:
        in_verify(patch, uniform=numbers.uniform)
        patch.setattr(verify_module, "draw", numbers.draw)

        def judge(uniforms: mx.array) -> tuple[mx.array, mx.array]:
            numbers.uniforms = uniform(uniforms)
            verdict, _ = law.verify(logits, draft, 0)
            return verdict.accepted, mx.exp(numbers.law)

        edges = thresholds(lambda u: judge(u)[0], drafts.shape, law.mode)
        parts = []
        for above in itertools.product((False, True), repeat=depth):
            inside = mx.where(mx.array(above), (edges + 1) / 2, edges / 2)
            share = mx.where(mx.array(above), 1 - edges, edges).prod(axis=1) * chance
            accepted, token = judge(inside)
            parts.append((roots, accepted, ended(roots, drafts, accepted, mx.arange(V)), share[:, None] * token))
        return Outcomes(*(np.array(mx.concatenate(column)) for column in zip(*parts, strict=True)))


def thresholds(accepted: Callable[[mx.array], mx.array], shape: tuple[int, ...], verify: VerifyMode) -> mx.array:
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


def along(table: Tables, law: Sampler, roots: mx.array, drafts: mx.array) -> tuple[mx.array, Draft, mx.array]:
    """Given drafts [B, k]: the target's logits [B, k + 1, V] along them, their laws, their probability [B]."""
    target, proposal = mx.array(table.target), mx.array(table.draft)
    laws: list[Distribution] = []
    node, chance, rows = roots, mx.ones(roots.shape), [target[roots]]
    for step in range(drafts.shape[1]):
        _, q = law.draw_draft(proposal[node], 0, [drafts[:, i : i + 1] for i in range(step)])
        assert q is not None
        laws.append(q)
        chance = chance * mx.exp(q.of(drafts[:, step, None])[:, 0])
        node = child(node, drafts[:, step])
        rows.append(target[node])
    return mx.stack(rows, axis=1), Draft(drafts, laws), chance


def ended(roots: mx.array, drafts: mx.array, accepted: mx.array, token: mx.array) -> mx.array:
    """The prefixes [B, ...] after a round: roots [B], `accepted` [B] of the drafts [B, k], token; EMITTED at most."""
    node = roots
    for i in range(drafts.shape[1]):
        node = mx.where(i < accepted, child(node, drafts[:, i]), node)
    node = child(node, token) if token.shape == node.shape else child(node[:, None], token)
    for _ in range(drafts.shape[1]):
        node = mx.where(node < first_at(EMITTED + 1), node, (node - 1) // V)
    return node


# -- instrument 2: many sequences with real keys --------------------------------------------------------------


def sampled_counts(table: Tables, law: Sampler, depth: int, sequences: int) -> np.ndarray:
    """How often each joint outcome [V ** EMITTED] came out of rounds drawn and judged with the law's own keys."""
    target, proposal = mx.array(table.target), mx.array(table.draft)
    node = np.zeros(sequences, np.int32)
    for number in range(EMITTED):  # a round emits one token at least
        running = np.flatnonzero(node < first_at(EMITTED))
        roots = at = mx.array(node[running])
        tokens, laws, rows = [], [], [target[roots]]
        for _ in range(depth):
            token, q = law.draw_draft(proposal[at], number, [t[:, None] for t in tokens])
            tokens.append(token.astype(mx.int32))
            laws.append(q)
            at = child(at, tokens[-1])
            rows.append(target[at])
        drafts = mx.stack(tokens, axis=1)
        verdict, sound = law.verify(mx.stack(rows, axis=1), Draft(drafts, laws), number)
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
