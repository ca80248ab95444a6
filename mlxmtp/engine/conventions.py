"""Which reading of a head drafts best: where references disagree, acceptance tells (families.md 0.2)."""

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
STARTS = 16
"""Places in the text from which it is continued."""
TOKENS = 32
"""Greedy tokens from each."""
LONGEST = 1024
"""Tokens of the text that are read: of a longer one, the beginning."""


@dataclass(frozen=True)
class Tried:
    """One reading: its choices by name, whether it is the default, and what came of it at depths 1 to 3.

    Args:
        rounds: how many the figures are from. acceptance: the share of rounds whose draft stood, by depth.
        standard_error: of tokens_per_round.
    """

    reading: dict[str, str]
    default: bool
    rounds: int
    acceptance: tuple[float, ...]
    tokens_per_round: float
    standard_error: float

    def clearly_beats(self, other: "Tried") -> bool:
        """By more than two standard errors of the difference."""
        error = math.hypot(self.standard_error, other.standard_error)
        return self.tokens_per_round - other.tokens_per_round > 2 * error


def try_conventions(engine: Engine, tokens: list[int]) -> Iterator[Tried]:
    """Continue a text greedily with every reading of the engine's head; the tokens are the same, the drafts are not.

    Args:
        tokens: of the text, at least `STARTS`.

    Raises:
        HeadError: there is no head. PromptError: the text is too short.
    """
    head, family = engine.mtp, family_of(engine.target.model_type)
    if head is None or family is None:
        raise HeadError(f"{engine.name}: no head to try: {engine.plain_because}")
    tokens = tokens[: max(0, min(LONGEST, engine.context - TOKENS))]
    if len(tokens) < STARTS:
        room = f", and {TOKENS} free in the model's context of {engine.context}"
        raise PromptError(f"{len(tokens)} tokens of the text can be used; expected {STARTS} or more{room}")
    used = head.convention
    try:
        for reading in family.conventions:
            _read_as(engine, reading)
            rounds = [
                one
                for start in range(1, STARTS + 1)
                for one in _continued(engine, tokens[: start * len(tokens) // STARTS])
            ]
            yield _summed(reading, rounds, default=reading == family.conventions[0])
    finally:
        _read_as(engine, used)


def _read_as(engine: Engine, reading: Any) -> None:
    assert engine.mtp is not None
    engine.mtp.convention = reading
    engine.target.hidden_at = engine.mtp.hidden_at


def _continued(engine: Engine, prompt: list[int]) -> Iterator[Round]:
    """The rounds after a prompt, past end tokens; the last, which the limit may have cut short, is left out."""
    assert engine.mtp is not None
    sequence = Sequence(engine.target, engine.mtp)
    sequence.prefill(prompt)
    sampler, policy = Sampler(Sampling()), FixedDepth(DEPTH)
    for one in generate(engine.target, MTPChain(engine.mtp), sequence, sampler, policy, never_stop, TOKENS):
        if one.drafted == DEPTH:
            yield one


def _summed(reading: Any, rounds: list[Round], *, default: bool) -> Tried:
    count = len(rounds)
    stood = tuple(sum(one.accepted > depth for one in rounds) / count for depth in range(DEPTH))
    variance = statistics.pvariance(one.accepted for one in rounds)
    return Tried(asdict(reading), default, count, stood, 1 + sum(stood), math.sqrt(variance / count))
