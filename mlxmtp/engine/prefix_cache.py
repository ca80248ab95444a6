"""The prefix cache: caches of earlier turns, so that a prompt that shares a prefix with them is not read again."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, replace
from itertools import product
from typing import Protocol

from mlxmtp.decoding.sequence import Sequence
from mlxmtp.decoding.snapshots import Position, PrefixInfo
from mlxmtp.heads import Head
from mlxmtp.targets import Target, detach


class SequenceStore(Protocol):
    """Takes the sequences that memory has no room for (`mlxmtp.engine.prefix_disk.PrefixStore`)."""

    def load(
        self, prompt: list[int], target: Target, head: Head | None, in_memory: int, *, drafting: bool
    ) -> Sequence | None:
        """Return a sequence that saves enough of a prompt whose first `in_memory` tokens memory holds, or None."""

    def prefix_infos(self) -> list[PrefixInfo]:
        """Return the facts of all sequences that it has for the model."""

    def save(self, sequence: Sequence) -> None:
        """Write a sequence; the store reports what fails."""


@dataclass(frozen=True)
class PrefixCacheStats:
    """What a `PrefixCache` holds, and what it has done so far.

    Args:
        sequences: number held, those in use included. snapshots: of all of them. nbytes: bytes of both.
        max_bytes: the bound.
        hits, misses: turns that reused a part of their prompt, and turns that reused nothing.
        reused_tokens: prompt tokens that were not read again, over all turns.
        evictions: sequences that made room for others. loaded: sequences that came from the store.
    """

    sequences: int
    snapshots: int
    nbytes: int
    max_bytes: int
    hits: int
    misses: int
    reused_tokens: int
    evictions: int
    loaded: int


class PrefixCache:
    """Sequences of several conversations with their snapshots, ordered from the least recently used on.

    A prompt that continues a sequence, or that differs from its newest answer on, takes that sequence. A prompt that
    differs earlier gets a copy of the shared prefix, and the sequence stays. So does a prompt that shares a prefix with
    a sequence of a turn in progress.

    Over the bound, the snapshots between the first and the last of a sequence go first, those inside messages before
    those at boundaries, then whole sequences, the
    least recently used first. A sequence that is larger than the bound is not kept.

    Args:
        max_bytes: bound of the bytes of all caches, those of turns in progress included.
        store: receives evicted sequences and returns them; None: they are dropped.
    """

    def __init__(self, max_bytes: int, store: SequenceStore | None = None) -> None:
        self.max_bytes = max_bytes
        self._store = store
        self._sequences: list[Sequence] = []
        self._in_use: weakref.WeakSet[Sequence] = weakref.WeakSet()
        self._hits = self._misses = self._reused = self._evictions = self._loaded = 0

    @property
    def nbytes(self) -> int:
        """Bytes of all caches."""
        return sum(sequence.nbytes for sequence in self._all())

    @property
    def stats(self) -> PrefixCacheStats:
        """What it holds now, and what it has done so far."""
        sequences = self._all()
        return PrefixCacheStats(
            sequences=len(sequences),
            snapshots=sum(len(sequence.snapshots) for sequence in sequences),
            nbytes=self.nbytes,
            max_bytes=self.max_bytes,
            hits=self._hits,
            misses=self._misses,
            reused_tokens=self._reused,
            evictions=self._evictions,
            loaded=self._loaded,
        )

    def fetch(self, prompt: list[int], target: Target, head: Head | None, *, drafting: bool) -> Sequence:
        """Return a sequence for a turn, which has read the longest reusable prefix; `insert` gives it back.

        Args:
            head: of the model, also for a turn without drafts: what the head has read stays with the sequence.
            drafting: the turn uses the head.
        """
        drafting = drafting and head is not None
        match = self._longest_match(prompt, target, head, drafting)
        in_memory = match[1].offset if match else 0
        if self._store and (loaded := self._store.load(prompt, target, head, in_memory, drafting=drafting)):
            self._loaded += 1
            self._sequences.append(loaded)
            match = self._longest_match(prompt, target, head, drafting) or match
        sequence = self._take(*match, prompt, drafting) if match else Sequence(target, head, drafting=drafting)
        self._hits, self._misses = self._hits + bool(match), self._misses + (not match)
        self._reused += len(sequence.tokens)
        self._in_use.add(sequence)
        self.evict()
        return sequence

    def prefix_infos(self, target: Target, head: Head | None) -> list[PrefixInfo]:
        """Return the facts of all sequences of a model, those of the store last."""
        held = [sequence.prefix_info for sequence in self._sequences if _belongs_to(sequence, target, head)]
        return held + (self._store.prefix_infos() if self._store else [])

    def insert(self, sequence: Sequence) -> None:
        """Add a sequence whose caches hold all its tokens but the last; the caller does not use it any more."""
        self.drop(sequence)
        if not sequence.offset or any(other is sequence for other in self._sequences):
            return
        for layer in sequence.cache:
            detach(layer)
        sequence.settle()
        self._sequences.append(sequence)
        self.evict()

    def drop(self, sequence: Sequence) -> None:
        """The turn of a sequence has ended, or its caches cannot be used again."""
        self._in_use.discard(sequence)

    def evict(self) -> None:
        """Drop snapshots and sequences until the caches are within the bound."""
        newest = [*self._in_use] or self._sequences[-1:]
        surplus = self.nbytes - self.max_bytes
        for limit, sequence in product((3, 2), self._all()):  # those in use come last
            if surplus > 0 and len(sequence.snapshots) > limit:
                before = sequence.nbytes
                sequence.thin_out(limit)
                surplus -= before - sequence.nbytes
        for large in (one for one in newest if one.nbytes > self.max_bytes):
            # evicting the others would not make enough room
            self._sequences = [sequence for sequence in self._sequences if sequence is not large]
            surplus -= large.nbytes
        while surplus > 0 and self._sequences:
            surplus -= self._evict_one(self._sequences[0])

    def clear(self) -> None:
        """Drop all sequences; the store keeps its own."""
        self._sequences.clear()

    def close(self) -> None:
        """Save all sequences to the store, the newest last, and drop them."""
        if self._store:
            for sequence in self._sequences:
                self._store.save(sequence)
        self.clear()

    def _all(self) -> list[Sequence]:
        return [*self._sequences, *self._in_use]

    def _longest_match(
        self, prompt: list[int], target: Target, head: Head | None, drafting: bool
    ) -> tuple[Sequence, Position] | None:
        """The sequence with the longest reusable prefix; of equals, first one that needs no copy, then the newest."""
        matches = []
        every = [*self._in_use, *self._sequences]
        for age, sequence in enumerate(every):
            if _belongs_to(sequence, target, head):
                position = self._info(sequence).longest_reusable_prefix(prompt, drafting=drafting)
                if position:
                    matches.append((position, self._can_be_taken(sequence, position), age))
        if not matches:
            return None
        position, _, age = max(matches)
        return every[age], position

    def _info(self, sequence: Sequence) -> PrefixInfo:
        """The facts of a sequence; one in use may be ahead of its end, where its caches cannot be cut."""
        info = sequence.prefix_info
        return replace(info, end=Position(0)) if sequence in self._in_use and not info.trimmable else info

    def _can_be_taken(self, sequence: Sequence, position: Position) -> bool:
        """Whether a turn can go on with the sequence itself, which loses no more than its newest answer."""
        return sequence not in self._in_use and _loses_only_answer(sequence, position)

    def _take(self, source: Sequence, position: Position, prompt: list[int], drafting: bool) -> Sequence:
        """The source itself, rewound, or a fork where it is in use or more than its newest answer would be lost."""
        if not self._can_be_taken(source, position):
            if source in self._in_use or self._has_room_for_fork(source, position):
                return source.fork_at(prompt, position, drafting=drafting)
            self._evictions += 1
            if self._store:
                self._store.save(source)
        self._sequences = [sequence for sequence in self._sequences if sequence is not source]
        source.rewind(prompt, position, drafting=drafting)
        return source

    def _has_room_for_fork(self, source: Sequence, position: Position) -> bool:
        """Whether the source could stay beside a copy of its prefix, because older sequences would go first."""
        needed = source.nbytes * position.offset // max(source.offset, 1)
        newer = self._sequences[self._sequences.index(source) :]
        return needed + sum(sequence.nbytes for sequence in newer) <= self.max_bytes

    def _evict_one(self, sequence: Sequence) -> int:
        """Drop a sequence; return its bytes."""
        if self._store:
            self._store.save(sequence)
        self._sequences = [other for other in self._sequences if other is not sequence]
        self._evictions += 1
        return sequence.nbytes


def _belongs_to(sequence: Sequence, target: Target, head: Head | None) -> bool:
    return sequence.target is target and (head is None or sequence.head is head)


def _loses_only_answer(sequence: Sequence, position: Position) -> bool:
    """Whether a turn that rewinds the sequence to this position loses no more than its newest answer."""
    return position == sequence.prefix_info.end or position.offset >= sequence.answer_start
