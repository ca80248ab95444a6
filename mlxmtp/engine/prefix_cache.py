"""What the turns of several conversations need not read again."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Protocol

from mlxmtp.decoding.sequence import Sequence
from mlxmtp.decoding.snapshots import Position
from mlxmtp.heads import Head
from mlxmtp.targets import Target


class Store(Protocol):
    """Where sequences go that memory has no room for (prefix_disk.py)."""

    def load(self, prompt: list[int], target: Target, head: Head | None, held: int) -> Sequence | None:
        """A sequence that is of use to a prompt of which memory holds the first `held` tokens, if it is worth it."""

    def save(self, sequence: Sequence) -> None:
        """Write a sequence; whatever goes wrong is the store's to tell."""


@dataclass(frozen=True)
class PrefixFigures:
    """What a `PrefixCache` holds, and what came of it so far.

    Args:
        conversations, points, nbytes: held now, what is in use included; max_bytes: its bound.
        hits, misses: turns that found a part of their prompt, and that found nothing.
        reused_tokens: tokens that turns did not read, all together.
        evictions: conversations that made room for others. loaded: those that came from the disk.
    """

    conversations: int
    points: int
    nbytes: int
    max_bytes: int
    hits: int
    misses: int
    reused_tokens: int
    evictions: int
    loaded: int


class PrefixCache:
    """Sequences of several conversations, each with points that it can go back to, the least recently used first.

    A prompt that goes on where a sequence stands, or that differs from the beginning of its newest answer on, takes
    that sequence itself. One that differs earlier gets a copy of what it shares, and the other branch stays.

    Over the bound, points between the first and the last of a sequence go first, then the sequences, always the least
    recently used ones. A sequence that is larger than all the room there is is not kept.

    Args:
        max_bytes: bound of the bytes of all caches, that of a turn in progress included.
        store: takes what is evicted, and gives it back. Without one, it is gone.
    """

    def __init__(self, max_bytes: int, store: Store | None = None) -> None:
        self._max_bytes = max_bytes
        self._store = store
        self._kept: list[Sequence] = []
        self._in_use: weakref.ref[Sequence] | None = None
        self._hits = self._misses = self._reused = self._evictions = self._loaded = 0

    @property
    def nbytes(self) -> int:
        """Bytes of all caches."""
        return sum(sequence.nbytes for sequence in self._all())

    @property
    def figures(self) -> PrefixFigures:
        every = self._all()
        points = sum(len(sequence.snapshots) for sequence in every)
        counts = self._hits, self._misses, self._reused, self._evictions, self._loaded
        return PrefixFigures(len(every), points, self.nbytes, self._max_bytes, *counts)

    def take(self, prompt: list[int], target: Target, head: Head | None) -> Sequence:
        """A sequence for a turn: it begins with tokens of `prompt` that need not be read, and goes back by `keep`."""
        found = self._best(prompt, target, head)
        if self._store and (loaded := self._store.load(prompt, target, head, found[1].offset if found else 0)):
            self._loaded += 1
            self._kept.append(loaded)
            found = self._best(prompt, target, head) or found
        self._in_use = None
        sequence = self._resumed(*found, prompt, head) if found else Sequence(target, head)
        self._hits, self._misses = self._hits + bool(found), self._misses + (not found)
        self._reused += len(sequence.tokens)
        self._in_use = weakref.ref(sequence)
        self.fit()
        return sequence

    def keep(self, sequence: Sequence) -> None:
        """Take a sequence in, whose caches stand at its last token; nobody else may go on with it."""
        if self._in_use and self._in_use() is sequence:
            self._in_use = None
        if not sequence.offset or any(one is sequence for one in self._kept):
            return
        sequence.settle()
        self._kept.append(sequence)
        self.fit()

    def fit(self) -> None:
        """Let go of what is too much, now that caches have grown."""
        newest = self._used() or (self._kept[-1] if self._kept else None)
        surplus = self.nbytes - self._max_bytes
        for sequence in self._all():  # the one in use comes last
            if surplus > 0 and len(sequence.snapshots) > 2:
                before = sequence.nbytes
                sequence.thin_out(2)
                surplus -= before - sequence.nbytes
        if newest and newest.nbytes > self._max_bytes:  # to evict the others for it would help nobody
            self._kept = [sequence for sequence in self._kept if sequence is not newest]
            surplus -= newest.nbytes
        while surplus > 0 and self._kept:
            surplus -= self._evict(self._kept[0])

    def clear(self) -> None:
        """Forget everything; what a store has stays there."""
        self._kept.clear()

    def close(self) -> None:
        """Hand everything to the store, the newest last, and forget it."""
        for sequence in self._kept if self._store else ():
            assert self._store
            self._store.save(sequence)
        self.clear()

    def _used(self) -> Sequence | None:
        return self._in_use() if self._in_use else None

    def _all(self) -> list[Sequence]:
        used = self._used()
        return [*self._kept, used] if used else list(self._kept)

    def _best(self, prompt: list[int], target: Target, head: Head | None) -> tuple[Sequence, Position] | None:
        """The sequence that has read most of a prompt; of equals, one that need not be copied, and the newest."""
        drafting, found = head is not None, []
        for age, sequence in enumerate(self._kept):
            if sequence.target is target and (head is None or sequence.head is head):
                position = sequence.prefix_info.longest_reusable_prefix(prompt, drafting=drafting)
                if position:
                    found.append((position, _is_spare(sequence, position), age))
        if not found:
            return None
        position, _, age = max(found)
        return self._kept[age], position

    def _resumed(self, source: Sequence, position: Position, prompt: list[int], head: Head | None) -> Sequence:
        drafting = head is not None
        if not _is_spare(source, position):
            if self._has_room_beside(source, position):
                return source.fork_at(prompt, position, drafting=drafting)
            self._evictions += 1
            if self._store:
                self._store.save(source)
        self._kept = [sequence for sequence in self._kept if sequence is not source]
        source.rewind(prompt, position, drafting=drafting)
        return source

    def _has_room_beside(self, source: Sequence, position: Position) -> bool:
        """Whether `source` could stay, were a copy of its first rows made: whether others would go first."""
        needed = source.nbytes * position.offset // max(source.offset, 1)
        newer = self._kept[self._kept.index(source) :]
        return needed + sum(sequence.nbytes for sequence in newer) <= self._max_bytes

    def _evict(self, sequence: Sequence) -> int:
        """The bytes that it had."""
        if self._store:
            self._store.save(sequence)
        self._kept = [one for one in self._kept if one is not sequence]
        self._evictions += 1
        return sequence.nbytes


def _is_spare(sequence: Sequence, position: Position) -> bool:
    """Whether a turn that begins there leaves nothing of a sequence behind but its newest answer."""
    return position == sequence.prefix_info.end or position.offset >= sequence.answer_start
