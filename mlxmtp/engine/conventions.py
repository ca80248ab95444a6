"""Which convention of a head drafts best: implementations disagree, and the acceptance of its drafts decides.

A convention says how a head is fed: with hidden states before or after a norm, for instance (docs/families.md).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from mlxmtp.decoding.depth import FixedDepth
from mlxmtp.decoding.draft import MTPChain
from mlxmtp.decoding.loop import generate, never_stop
from mlxmtp.decoding.sampler import Sampler
from mlxmtp.decoding.sampling import Sampling
from mlxmtp.decoding.sequence import Sequence
from mlxmtp.decoding.stats import Round
from mlxmtp.engine.engine import Engine
from mlxmtp.errors import HeadError, PromptError
from mlxmtp.heads.families import family_of

DEPTH = 3
"""Drafts in a round."""
STARTS = 16
"""Places in the text from which it is continued."""
TOKENS = 32
"""Greedy tokens from each start."""
MAX_TEXT_TOKENS = 1024
"""Tokens of the text that are used; the rest of a longer text is ignored."""


@dataclass(frozen=True)
class ConventionTrial:
    """The result of one convention.

    Args:
        convention: its choices by name.
        default: it is the family's default.
        rounds: number of rounds measured.
        acceptance: share of rounds whose draft was accepted, for depths 1 to `DEPTH`.
        tokens_per_round: mean. standard_error: of this mean.
    """

    convention: dict[str, str]
    default: bool
    rounds: int
    acceptance: tuple[float, ...]
    tokens_per_round: float
    standard_error: float

    def clearly_beats(self, other: ConventionTrial) -> bool:
        """Whether it has more tokens a round, by more than two standard errors of the difference."""
        error = math.hypot(self.standard_error, other.standard_error)
        return self.tokens_per_round - other.tokens_per_round > 2 * error

    def to_dict(self) -> dict[str, Any]:
        """The fields for `mlxmtp inspect --json`, which calls a convention a reading."""
        fields = asdict(self)
        return {"reading": fields.pop("convention"), **fields}


def try_conventions(engine: Engine, tokens: list[int]) -> Iterator[ConventionTrial]:
    """Continue a text greedily with each convention of the engine's head. The tokens are equal, the drafts differ.

    Args:
        tokens: ids of the text, at least `STARTS`.

    Raises:
        HeadError: there is no head.
        PromptError: the text is too short.
    """
    head, family = engine.mtp, family_of(engine.target.model_type)
    if head is None or family is None:
        raise HeadError(f"{engine.name}: no head to try: {engine.plain_because}")
    tokens = tokens[: max(0, min(MAX_TEXT_TOKENS, engine.context - TOKENS))]
    if len(tokens) < STARTS:
        room = f", and {TOKENS} free in the model's context of {engine.context}"
        raise PromptError(f"{len(tokens)} tokens of the text can be used; expected {STARTS} or more{room}")
    original = head.convention
    try:
        for convention in family.conventions:
            _use_convention(engine, convention)
            rounds = [
                item
                for start in range(1, STARTS + 1)
                for item in _continue(engine, tokens[: start * len(tokens) // STARTS])
            ]
            yield _summarise(convention, rounds, default=convention == family.conventions[0])
    finally:
        _use_convention(engine, original)


def _use_convention(engine: Engine, convention: Any) -> None:
    assert engine.mtp is not None
    engine.mtp.convention = convention
    engine.target.hidden_at = engine.mtp.hidden_at


def _continue(engine: Engine, prompt: list[int]) -> Iterator[Round]:
    """The rounds after a prompt, past end tokens, without the last one, which the limit may have cut short."""
    assert engine.mtp is not None
    sequence = Sequence(engine.target, engine.mtp)
    sequence.prefill(prompt)
    sampler, policy = Sampler(Sampling()), FixedDepth(DEPTH)
    for item in generate(engine.target, MTPChain(engine.mtp), sequence, sampler, policy, never_stop, TOKENS):
        if item.drafted == DEPTH:
            yield item


def _summarise(convention: Any, rounds: list[Round], *, default: bool) -> ConventionTrial:
    count = len(rounds)
    acceptance = tuple(sum(item.accepted > depth for item in rounds) / count for depth in range(DEPTH))
    variance = statistics.pvariance(item.accepted for item in rounds)
    return ConventionTrial(
        convention=asdict(convention),
        default=default,
        rounds=count,
        acceptance=acceptance,
        tokens_per_round=1 + sum(acceptance),
        standard_error=math.sqrt(variance / count),
    )
