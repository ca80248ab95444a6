"""Where the text of a turn came from, round by round: drafts that were accepted, and the target's own tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mlxmtp.decoding.stats import Round
from mlxmtp.engine.output import Segment, SegmentKind


@dataclass(frozen=True)
class TracedText:
    """Text of one kind that came with one token.

    Args:
        depth: of the accepted draft that the token was, from 1; 0: the target's own token.
    """

    kind: SegmentKind
    text: str
    depth: int


@dataclass(frozen=True)
class RoundTrace:
    """One round.

    Args:
        drafted, accepted, from_lookup: as in `Round`.
        texts: the text that its tokens made certain, in order. A token that completes a character, a marker or what
            could have been a stop string has the text that was held back too.
    """

    drafted: int = 0
    accepted: int = 0
    from_lookup: bool = False
    texts: tuple[TracedText, ...] = ()


NO_TRACE = RoundTrace()


def trace_of(item: Round, parts: Sequence[Sequence[Segment]]) -> RoundTrace:
    """Return the trace of a round.

    Args:
        parts: the segments that each of its tokens made certain; then those that the turn's end did.
    """
    texts = []
    for i, segments in enumerate(parts):
        depth = i + 1 if i < min(item.accepted, len(item.tokens)) else 0
        texts += [TracedText(segment.kind, segment.text, depth) for segment in segments if segment.text]
    return RoundTrace(item.drafted, item.accepted, item.from_lookup, tuple(texts))
