"""Lookup in the text so far: what followed the same tokens before may follow them again, as where an edit repeats code.

Prompt lookup decoding (Saxena 2023). The last tokens' earlier places are found as LZ77 finds them, by chains through
all places of the same few tokens; a token costs the same time whatever the length of the text.
"""

from __future__ import annotations

from collections.abc import Sequence

SHORTEST, LONGEST = 4, 32
"""Tokens that have to be the same, and the most that are compared."""
PLACES = 16
"""So many of the latest places are compared."""


class Lookup:
    """The tokens of a growing text, and the place in it that is most like its end.

    `match`: how many of the last tokens stood at that place before, to LONGEST; 0: fewer than SHORTEST.
    """

    def __init__(self) -> None:
        self.match = 0
        self._tokens: list[int] = []
        self._after = 0
        self._latest: dict[tuple[int, ...], int] = {}
        self._earlier: list[int] = []

    def __len__(self) -> int:
        return len(self._tokens)

    def extend(self, tokens: Sequence[int]) -> None:
        """More text."""
        follows = self.match and self.after(len(tokens)) == [*tokens]
        self._tokens += tokens
        self._index()
        if follows:  # nothing is longer than the longest, a token later
            self._after += len(tokens)
            self.match = min(self.match + len(tokens), LONGEST)
        else:
            self._find()

    def after(self, count: int) -> list[int]:
        """The next tokens, if it goes on as it did at that place; behind its end, as it has begun to repeat itself."""
        found = self._tokens[self._after : self._after + count]
        while len(found) < count:
            found += found[-(len(self._tokens) - self._after) :][: count - len(found)]
        return found

    def _index(self) -> None:
        """Each place's predecessor behind the same SHORTEST tokens; the end is no place yet: nothing follows it."""
        tokens, latest, earlier = self._tokens, self._latest, self._earlier
        for place in range(len(earlier), len(tokens)):
            key = tuple(tokens[max(place - SHORTEST, 0) : place])
            earlier.append(latest.get(key, -1))
            latest[key] = place

    def _find(self) -> None:
        end, self.match = len(self._tokens), 0
        place = self._latest.get(tuple(self._tokens[-SHORTEST:]), -1)
        for _ in range(PLACES):
            if place < SHORTEST or self.match == LONGEST:
                return
            length = self._common(place, end)
            if length > self.match:
                self.match, self._after = length, place
            place = self._earlier[place]

    def _common(self, one: int, other: int) -> int:
        """How many tokens before both places are the same."""
        tokens, count = self._tokens, SHORTEST
        while count < min(LONGEST, one) and tokens[one - count - 1] == tokens[other - count - 1]:
            count += 1
        return count
