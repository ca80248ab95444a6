"""One sequence: its tokens, and the caches of target and head that have read them."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from copy import copy, deepcopy
from typing import TYPE_CHECKING, Any, Self

import mlx.core as mx

from mlxmtp.decoding.snapshots import Position, PrefixInfo, Snapshot, chunk_ends, thin_out
from mlxmtp.prefixes import common_length
from mlxmtp.targets import can_snapshot, check_ids, is_trimmable, leaf_caches, restore, snapshot

if TYPE_CHECKING:
    from mlxmtp.heads import Head
    from mlxmtp.targets import Cache, Target

PREFILL_TOKENS = 2048
"""Prompt tokens in one forward. mlx-lm's default: equal chunks give equal bits."""
READ_EVERY = 1024
"""Tokens between two times at which the head reads its pending states without drafting: bounds their memory and the
length of its passes. As in a prefill, that costs a pass of one layer over tokens that took as many passes of all."""
MAX_SNAPSHOTS = 16
"""Snapshots of one sequence. In a hybrid model one has the bytes of a few thousand tokens of KV cache."""


class Sequence:
    """Tokens and caches between rounds.

    The target's cache holds every token but the last, which the next round feeds. Entry p of the head's cache is made
    from the target's hidden state of token p and from token p + 1; a head's further layers have read less. Hidden
    states that the head has not read are pending; the newest is always pending, because its output is the first draft
    of the next round. A head without a KV cache needs the newest state only.

    After a rewind the sequence has no unread token, until `prefill` appends the rest of the prompt. Where no hidden
    state was kept, none is pending. A turn without drafts leaves the head's cache at its offset.

    Args:
        target, head: the models; None: no head.
        drafting: the first turn uses the head.

    Attributes:
        offset: tokens that the target has read.
        drafting: the head reads along.
        answer_start: from this offset on, the sequence holds the newest answer and the tokens that introduce it.
    """

    def __init__(self, target: Target, head: Head | None, *, drafting: bool = True) -> None:
        self.tokens: list[int] = []
        self.cache: Cache = target.make_cache()
        self.head_cache: Cache = head.make_cache(self.cache) if head else []
        self.head = head
        self.target = target
        self.offset = 0
        self.drafting = drafting and head is not None
        self.snapshots: list[Snapshot] = []
        self.answer_start = 0
        self._answers: tuple[tuple[int, int], ...] = ()  # of the turns before this one
        self._prompt_end = 0  # from here on, tokens are this turn's answer
        self._pending: list[mx.array] = []

    def prefill(self, tokens: list[int], chunk_size: int = PREFILL_TOKENS, boundaries: Collection[int] = ()) -> None:
        """Append prompt tokens and read all but the last; arguments and errors as in `prefill_chunks`."""
        for _ in self.prefill_chunks(tokens, chunk_size, boundaries):
            pass

    def prefill_chunks(
        self, tokens: list[int], chunk_size: int = PREFILL_TOKENS, boundaries: Collection[int] = ()
    ) -> Iterator[tuple[int, int]]:
        """Append prompt tokens and read all but the last, `chunk_size` tokens in one forward.

        Yields (done, total) tokens after each chunk. Closed there, the sequence has the tokens read so far.

        Args:
            boundaries: token counts at which to take a snapshot, where the caches need one. Between distant ones,
                some chunks end with a snapshot too.

        Raises:
            PromptError: the embedding has no row for a token; nothing has been read.
        """
        check_ids(tokens, self.target.vocab_size)
        if self._prompt_end < len(self.tokens):
            self._answers = (*self._answers, (self._prompt_end, len(self.tokens)))
        unread = self.tokens[self.offset :] + tokens
        del self.tokens[self.offset :]
        start, end = self.offset, self.offset + len(unread) - 1
        self._prompt_end = end + 1
        self.answer_start = max((boundary for boundary in boundaries if boundary <= end), default=end) - 1
        within: set[int] = set()
        wanted: set[int] = set()
        if self._needs_snapshots:
            within = chunk_ends(boundaries, chunk_size).difference(boundaries)
            wanted = {b for b in within.union(boundaries) if self.offset <= b <= end}
        self._take_snapshot(wanted, within)
        while self.offset < end:
            stop = min(self.offset + chunk_size, end, *(b for b in wanted if b > self.offset))
            chunk = unread[self.offset - start : stop - start]
            _, hidden = self.target.forward(mx.array([chunk], mx.uint32), self.cache)
            self.tokens += chunk
            self._extend_head(hidden)
            self.settle()
            self.offset = stop
            self._take_snapshot(wanted, within)
            mx.clear_cache()
            yield stop - start, end - start
        self.tokens += unread[-1:]

    def advance(self, tokens: list[int], hidden: mx.array) -> None:
        """Append a round's tokens; hidden [1, n, H] are the target's states of the inputs that produced them."""
        self.tokens += tokens
        self.offset = len(self.tokens) - 1
        if not (self.head and self.drafting):
            return
        self._pending = [*self._pending, hidden] if self.head.has_kv_cache else [hidden[:, -1:]]
        if self.offset % READ_EVERY < len(tokens):
            self._read_pending()

    def take_pending(self) -> tuple[mx.array, mx.array] | None:
        """The pending hidden states [1, n, H] and the tokens [1, n] that follow them; then none is pending."""
        if not self._pending:
            return None
        hidden = _join(self._pending)
        self._pending = []
        return hidden, mx.array([self.tokens[-hidden.shape[1] :]], mx.uint32)

    def _read_pending(self) -> None:
        """Have the head read the pending hidden states up to the newest, which stays pending."""
        pending = self.take_pending()
        if self.head is None or pending is None:
            return
        hidden, tokens = pending
        if hidden.shape[1] > 1:
            self.head(hidden[:, :-1], tokens[:, :-1], self.head_cache)
        self._pending = [mx.contiguous(hidden[:, -1:])]
        mx.async_eval([layer.state for layer in self.head_cache], self._pending)

    def settle(self) -> None:
        """Evaluate the caches: until then they keep the whole graph of the last round alive."""
        mx.eval([layer.state for layer in self.cache + self.head_cache], self._pending)

    def fork(self) -> Self:
        """A second sequence with the same tokens and caches; later changes of one do not touch the other."""
        fork = copy(self)
        fork.tokens, fork.snapshots = list(self.tokens), list(self.snapshots)
        # one deepcopy: a head's cache can be a view of the target's
        fork.cache, fork.head_cache, fork._pending = deepcopy((self.cache, self.head_cache, self._pending))
        return fork

    @property
    def nbytes(self) -> int:
        """Bytes of the caches, the snapshots and the pending hidden states."""
        caches: int = sum(layer.nbytes for layer in self.cache + self.head_cache)
        return caches + sum(s.nbytes for s in self.snapshots) + sum(hidden.nbytes for hidden in self._pending)

    # -- prefix reuse -----------------------------------------------------------------------------------------

    @property
    def answers(self) -> tuple[tuple[int, int], ...]:
        """(start, end) of the tokens that the model generated, in the order of the turns."""
        count = len(self.tokens)
        return tuple(one for one in (*self._answers, (self._prompt_end, count)) if one[0] < one[1] <= count)

    @property
    def prefix_info(self) -> PrefixInfo:
        """The facts that decide whether this sequence helps a prompt."""
        return PrefixInfo(
            tokens=self.tokens,
            end=Position(self.offset, sum(hidden.shape[1] for hidden in self._pending)),
            positions=tuple(snapshot.position for snapshot in self.snapshots),
            trimmable=all(map(is_trimmable, self._leaf_caches())),
            head_offset=self._head_offset if self.head else None,
            answers=self.answers,
        )

    def rewind(self, prompt: list[int], position: Position, *, drafting: bool) -> None:
        """Go back to a position of `prefix_info`; `prefill` then reads the rest of `prompt`."""
        self._copy_from(self, prompt, position, drafting)

    def fork_at(self, prompt: list[int], position: Position, *, drafting: bool) -> Self:
        """A second sequence at a position of `prefix_info`; this sequence stays as it is."""
        fork = type(self)(self.target, self.head)
        fork._copy_from(self, prompt, position, drafting)
        return fork

    @property
    def can_snapshot(self) -> bool:
        """Every kind of cache can be copied; otherwise there are no snapshots."""
        return all(map(can_snapshot, self._leaf_caches()))

    @property
    def snapshot(self) -> Snapshot:
        """A snapshot at the present offset that copies the trimmable caches too."""
        pending = _join(self._pending) if self._pending else None
        return Snapshot(self.offset, tuple(map(snapshot, self._leaf_caches())), pending)

    @classmethod
    def from_snapshots(
        cls, target: Target, head: Head | None, info: PrefixInfo, snapshots: list[Snapshot], last: Snapshot
    ) -> Self:
        """The sequence that had the tokens of `info` and these snapshots, with the caches of `last`.

        Raises:
            ValueError: the states do not belong to these models.
        """
        sequence = cls(target, head)
        leaves = sequence._leaf_caches()
        if any(len(one.states) != len(leaves) for one in (*snapshots, last)):
            raise ValueError(f"the states of {len(last.states)} caches; expected {len(leaves)}")
        for leaf, state in zip(leaves, last.states, strict=True):
            if state is None:
                raise ValueError("a cache without its state")
            restore(leaf, state)
        sequence.tokens, sequence.offset, sequence.snapshots = list(info.tokens), last.offset, snapshots
        sequence._answers, sequence._prompt_end = info.answers, len(info.tokens)
        sequence.answer_start = (snapshots[-1].offset if snapshots else last.offset) - 1
        sequence._pending = [] if last.pending is None else [last.pending]
        return sequence

    def thin_out(self, limit: int = MAX_SNAPSHOTS, boundaries: Collection[int] | None = None) -> None:
        """Drop the snapshots that save the fewest tokens, as `snapshots.thin_out`."""
        self.snapshots = thin_out(self.snapshots, limit, boundaries)

    def _extend_head(self, hidden: mx.array) -> None:
        """Feed the head the hidden states of a chunk [1, n, H], the last of the tokens; the newest stays pending."""
        if not (self.head and self.drafting):
            return
        hidden = _join([*self._pending, hidden])
        count = hidden.shape[1] - 1
        if count and self.head.has_kv_cache:
            self.head(hidden[:, :-1], mx.array([self.tokens[-count:]], mx.uint32), self.head_cache)
        self._pending = [mx.contiguous(hidden[:, -1:])]  # a view would keep the whole chunk alive

    def _leaf_caches(self) -> list[Any]:
        """The leaf caches of target and head, the head's last."""
        return leaf_caches(self.cache) + leaf_caches(self.head_cache)

    @property
    def _needs_snapshots(self) -> bool:
        return self.can_snapshot and not all(map(is_trimmable, self._leaf_caches()))

    @property
    def _head_offset(self) -> int:
        """Tokens that the head's first layer has read; a head without a KV cache has read what the target has."""
        if self.head is None or not self.head.has_kv_cache:
            return self.offset
        return max((leaf.offset for leaf in leaf_caches(self.head_cache) if hasattr(leaf, "offset")), default=0)

    def _take_snapshot(self, wanted: set[int], within: set[int]) -> None:
        """Take a snapshot at a wanted offset, unless there is one that is as good."""
        if not self.offset or self.offset not in wanted:
            return
        if any(one.position >= self.prefix_info.end for one in self.snapshots):
            return
        states = tuple(None if is_trimmable(leaf) else snapshot(leaf) for leaf in self._leaf_caches())
        pending = mx.contiguous(_join(self._pending)) if self._pending else None
        mx.eval([state.arrays for state in states if state], pending)
        self.snapshots = [one for one in self.snapshots if one.offset < self.offset]
        self.snapshots.append(Snapshot(self.offset, states, pending, self.offset in within))
        self.thin_out(boundaries=wanted)

    def _copy_from(self, source: Sequence, prompt: list[int], position: Position, drafting: bool) -> None:
        """Take the caches that `source`, which may be this sequence, had at `position`."""
        at = next((one for one in source.snapshots if one.position == position), None)
        target_leaves = len(leaf_caches(self.cache))
        # the head's last entry contains the next token, which only a turn that drafts requires to be the same
        unread = position.pending or (0 if drafting else 1)
        head_offset = min(position.offset - unread, source._head_offset)
        for i, (leaf, theirs) in enumerate(zip(self._leaf_caches(), source._leaf_caches(), strict=True)):
            state = at.states[i] if at else None
            if state:
                restore(leaf, state)
            elif is_trimmable(theirs):
                behind = source._head_offset - theirs.offset  # later layers of a head have read less
                _copy_prefix(leaf, theirs, position.offset if i < target_leaves else max(head_offset - behind, 0))
            elif leaf is not theirs:
                restore(leaf, snapshot(theirs))
        count = len(source.tokens)
        shared = common_length(source.tokens, prompt)
        continues = position == source.prefix_info.end and len(prompt) > count == shared
        self._answers = tuple((start, min(end, shared)) for start, end in source.answers if start < shared)
        self.tokens = source.tokens[: count if continues else position.offset]
        pending = at.pending if at else _join(source._pending) if position.pending else None
        self._pending = [pending] if drafting and pending is not None else []
        self.snapshots = [one for one in source.snapshots if one.offset <= position.offset]
        self.offset, self.drafting, self._prompt_end = position.offset, drafting, len(self.tokens)


def _copy_prefix(leaf: Any, theirs: Any, length: int) -> None:
    """Give `leaf` the first `length` tokens of a trimmable cache, which may be the same one."""
    if leaf is theirs:
        leaf.trim(max(leaf.offset - length, 0))
    else:
        restore(leaf, snapshot(theirs, length))


def _join(states: list[mx.array]) -> mx.array:
    return mx.concatenate(states, axis=1) if len(states) > 1 else states[0]
