"""What a conversation's next turn need not read again."""

from mlxmtp.decoding.sequence import Sequence
from mlxmtp.heads import Head
from mlxmtp.targets import Target


class Prefix:
    """The sequence of a conversation's newest turn: a prompt that begins with all of its tokens goes on from there."""

    def __init__(self) -> None:
        self._sequence: Sequence | None = None
        self._whole = False

    @property
    def nbytes(self) -> int:
        """Bytes of its caches."""
        return self._sequence.nbytes if self._sequence else 0

    def take(self, tokens: list[int], target: Target, head: Head | None) -> Sequence:
        """The sequence for a turn: what was kept, if `tokens` begin with it and go on, else an empty one."""
        if not (self._whole and self._begins(tokens, head)):
            self._sequence = Sequence(target, head)
        assert self._sequence is not None
        self._whole = False
        return self._sequence

    def keep(self, sequence: Sequence) -> None:
        """The sequence's turn has ended as it should: its caches stand at its last token."""
        self._whole = self._whole or sequence is self._sequence

    def _begins(self, tokens: list[int], head: Head | None) -> bool:
        kept = self._sequence
        if kept is None or kept.head is not head or len(kept.tokens) >= len(tokens):
            return False
        return kept.tokens == tokens[: len(kept.tokens)]
