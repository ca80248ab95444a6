"""What `--depth auto` learns of a narrowed draft vocabulary: how much of the text it has."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Protocol

from mlxmtp.decoding.estimates import HEAD_PRIOR, MAX_DRAFTS, PRIOR_DRAFTS, Source
from mlxmtp.decoding.stats import Round

MAX_TOKENS = 100
"""Tokens after which the newest one keeps its weight, 1/100: another language is noticed within about 50."""


class NarrowedVocabulary(Protocol):
    """The token ids of narrowed drafts (`mlxmtp.heads.DraftVocabulary`).

    `max_saving`: the share of a draft step's time that they save at most, by bytes.
    """

    @property
    def max_saving(self) -> float: ...

    def __contains__(self, token: int) -> bool: ...

    def __len__(self) -> int: ...

    def add(self, tokens: Iterable[int]) -> None:
        """Take in tokens of the text."""


class Coverage:
    """The acceptance of full and narrowed drafts, from one estimate that rounds of both kinds teach.

    `AcceptanceRate` holds the shares for tokens of the text inside the vocabulary. Narrowed drafts are never accepted
    in place of the others, full ones with a share of their own.

    Args:
        inside: share of the text's tokens inside the vocabulary, from an earlier run.
        outside: share of full drafts accepted in place of the others.
    """

    def __init__(self, vocabulary: NarrowedVocabulary, inside: float = 1.0, outside: float = HEAD_PRIOR) -> None:
        self.vocabulary = vocabulary
        self.inside = inside
        self.outside = outside
        self._tokens = self._outside_drafts = PRIOR_DRAFTS

    def observe(self, round: Round) -> Collection[int]:
        """Learn from a round of the head's drafts; return the positions of tokens outside the vocabulary."""
        positions = []
        for i, token in enumerate(round.tokens[: round.drafted]):
            inside = token in self.vocabulary
            self._tokens = min(self._tokens + 1, MAX_TOKENS)
            self.inside += (inside - self.inside) / self._tokens
            if inside:
                continue
            positions.append(i)
            if not round.narrowed:
                self._outside_drafts = min(self._outside_drafts + 1, MAX_DRAFTS)
                self.outside += ((i < round.accepted) - self.outside) / self._outside_drafts
        return positions

    def factors(self, source: Source) -> tuple[float, float]:
        """What `AcceptanceRate.tokens` multiplies each share by, and adds to it."""
        return self.inside, 0.0 if source == "narrowed" else (1 - self.inside) * self.outside
