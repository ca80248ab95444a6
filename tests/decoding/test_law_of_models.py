"""The law of sampled tokens end to end: the first three of a turn, against the target's own law of them, enumerated.

Head, caches, drafts, verification and rollback are in it. Chi-square over the first token, the first two and all
three (outcomes that are expected less than 20 times count as one): each test raises a false alarm with probability
1e-6. Seeds are fixed, so that a run's outcome is, too. There are turns enough to see a single row that should have
left the caches; test_verify_law.py sees small errors of verification.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlxmtp import Engine, load
from mlxmtp.decoding.sampler import VerifyMode
from mlxmtp.decoding.sampling import Sampling
from mlxmtp.targets import Pass
from tests import tiny
from tests.decoding.law_tables import FALSE_ALARM, Patch, chance_of_worse, in_verify
from tests.grids import cases
from tests.running import prefilled, rounds

V, FIRST = 12, 3  # vocabulary; how many tokens the joint law is over
TURNS, DEPTH = 300, 2
TEMPERATURE = 0.8
PROMPT = [5, 9, 4, 7, 3]


def nextn(kind: tiny.NextNKind) -> Callable[..., Engine]:
    """A fifth of its drafts stand. Sparse attention picks 4 keys of 5 and more."""
    return lambda fixture: load(fixture("nextn_checkpoint")(kind, vocab=V, layers=2, index_topk=4, index_heads=8))


def several(kind: tiny.SeveralKind, seed: int) -> Callable[..., Engine]:
    """Layers in turn with a window that the prompt fills; a quarter of their drafts stand."""
    return lambda fixture: load(fixture("several_checkpoint")(kind, vocab=V, window=4, seed=seed))


def gemma(fixture: Callable[..., Callable[..., Path]]) -> Engine:
    """With a window that the prompt fills, and half of the vocabulary never drafted."""
    sizes = {"vocab": V, "window": 4, "clusters": 4}
    return load(fixture("gemma_checkpoint")(**sizes), head=fixture("assistant")(**sizes))


# A model with a head and a vocabulary of V: how to load it, given a function that returns fixtures by name.
MODELS: dict[str, Callable[..., Engine]] = {
    **{kind: nextn(kind) for kind in tiny.NEXTN_KINDS},
    "gemma4": gemma,
    "step3p5": several("step3p5", 2),
    "mimo_v2_flash": several("mimo_v2_flash", 1),
}
# Verification sees logits and no model, caches see no verifier: each family with both, each kind with one at least.
VERIFIED: list[tuple[str, VerifyMode]] = [
    ("glm4_moe", "token"),
    ("glm4_moe", "block"),
    ("glm4_moe_lite", "token"),
    ("deepseek_v3", "block"),
    ("deepseek_v32", "token"),
    ("glm_moe_dsa", "block"),
    ("gemma4", "token"),
    ("gemma4", "block"),
    ("step3p5", "token"),
    ("step3p5", "block"),
    ("mimo_v2_flash", "block"),
]
DEFAULT = [("glm4_moe", "block")]
"""The cheapest of them. Seeded tokens, below, show the caches of the other families by default."""


@pytest.fixture(scope="module", params=cases(MODELS, ("glm4_moe", "deepseek_v32", "glm_moe_dsa", "gemma4")))
def engine(request: pytest.FixtureRequest) -> Engine:
    return MODELS[request.param](request.getfixturevalue)


def enumerated_law(engine: Engine) -> np.ndarray:
    """The probabilities [V] * FIRST of a turn's first tokens, in float64, from one pass over every prefix."""
    law = np.ones(1)
    for count in range(FIRST):
        prefixes = np.indices((V,) * count).reshape(count, V**count).T
        tokens = np.concatenate([np.tile(PROMPT, (len(prefixes), 1)), prefixes], axis=1).astype(np.int32)
        logits, _ = engine.target.forward(mx.array(tokens), engine.target.make_cache())
        weights = np.exp(np.array(logits[:, -1].astype(mx.float32), np.float64) / TEMPERATURE)
        law = law.reshape(-1, 1) * weights / weights.sum(axis=1, keepdims=True)
    return law.reshape((V,) * FIRST)


def sampled(engine: Engine, verify: VerifyMode) -> tuple[np.ndarray, float]:
    """How often each outcome [V] * FIRST came out, and the share of drafts that stood."""
    counts, drafted, accepted = np.zeros((V,) * FIRST, int), 0, 0
    start = prefilled(engine, PROMPT, DEPTH)
    for seed in range(TURNS):
        sampling = Sampling(TEMPERATURE, seed=seed)
        turn = list(rounds(engine, start.fork(), FIRST, DEPTH, sampling, verify=verify))
        counts[tuple(token for one in turn for token in one.tokens)] += 1
        drafted += sum(one.drafted for one in turn)
        accepted += sum(one.accepted for one in turn)
    return counts, accepted / drafted


def follows(counts: np.ndarray, law: np.ndarray) -> bool:
    """Whether the first token, the first two and all three are as the law has them."""
    parts = [tuple(range(kept, FIRST)) for kept in range(1, FIRST + 1)]
    chances = [chance_of_worse(counts.sum(axis=rest).reshape(-1), law.sum(axis=rest).reshape(-1)) for rest in parts]
    return min(chances) > FALSE_ALARM / FIRST


@pytest.mark.parametrize(("engine", "verify"), cases(VERIFIED, DEFAULT), indirect=["engine"])
def test_sampled_tokens_follow_the_targets_law(engine: Engine, verify: VerifyMode) -> None:
    counts, stood = sampled(engine, verify)
    assert stood > 0.1, "where nothing stands, the law is that of plain sampling"
    assert follows(counts, enumerated_law(engine))


def every_draft_stands(patch: Patch) -> None:
    in_verify(patch, uniform=lambda *, shape, key: mx.zeros(shape))


def a_row_too_many(patch: Patch) -> None:
    """The first rejected draft stays in the caches."""
    commit = Pass.commit
    patch.setattr(Pass, "commit", lambda self, rows: commit(self, min(rows + 1, self.logits.shape[1])))


@pytest.mark.exhaustive
@pytest.mark.parametrize(("kind", "verify", "broken"), [
    ("glm4_moe", "token", every_draft_stands),
    ("deepseek_v3", "block", a_row_too_many),
    ("glm_moe_dsa", "token", a_row_too_many),
])  # fmt: skip
def test_gross_errors_are_rejected(
    request: pytest.FixtureRequest,
    monkeypatch: Patch,
    kind: tiny.NextNKind,
    verify: VerifyMode,
    broken: Callable[[Patch], None],
) -> None:
    engine = MODELS[kind](request.getfixturevalue)
    law = enumerated_law(engine)
    broken(monkeypatch)
    assert not follows(sampled(engine, verify)[0], law)


def test_a_seed_gives_the_tokens_of_plain_decoding(engine: Engine) -> None:
    plain, *found = (
        [t for one in rounds(engine, prefilled(engine, PROMPT, d), 16, d, Sampling(1.0, seed=0)) for t in one.tokens]
        for d in (0, 1, 4)
    )
    assert found == [plain] * 2
