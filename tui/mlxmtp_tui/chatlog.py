"""A conversation and its file, changed together."""

from __future__ import annotations

from collections.abc import Callable

from mlxmtp.decoding.stats import Stats
from mlxmtp_tui.conversation import Answer, Conversation, partial_message
from mlxmtp_tui.sessions import Session

SAVE_INTERVAL_S = 0.8
"""Least seconds between two saves of an incomplete answer: as much as a crash can cost."""


class ChatLog:
    """A conversation that is written to its file as it goes.

    Args:
        new_session: makes the file, when there is something to write.
        session: the file of a saved chat; None for a new one.
    """

    def __init__(
        self, new_session: Callable[[], Session], conversation: Conversation, session: Session | None = None
    ) -> None:
        self.conversation = conversation
        self._new_session = new_session
        self._session = session
        self._answering = False
        self._segments: list[list[str]] = []
        self._saved_segments = 0
        self._saved_at = 0.0

    @property
    def session(self) -> Session:
        """The file, made when it is needed first."""
        if self._session is None:
            self._session = self._new_session()
            if self.conversation.system:
                self._session.write_system(self.conversation.system)
        return self._session

    @property
    def has_session(self) -> bool:
        """Whether there is a file."""
        return self._session is not None

    @property
    def answering(self) -> bool:
        """Whether the answer of the newest turn is being generated."""
        return self._answering

    def ask(self, typed: str, sent: str) -> None:
        """Add a turn."""
        self.conversation.ask(typed, sent)
        self.session.write_user(typed, sent)

    def begin_answer(self) -> None:
        """Begin the answer of the newest turn."""
        self._answering, self._segments, self._saved_segments = True, [], 0

    def extend_answer(self, segments: list[list[str]]) -> None:
        """Add [kind, text] pairs to the incomplete answer."""
        self._segments += segments

    def partial_answer(self, reason: str, stats: Stats | None) -> Answer:
        """What there is of the incomplete answer."""
        return Answer(partial_message(self._segments), reason, stats)

    def save_partial(self, now: float, stats: Stats | None) -> None:
        """Save the incomplete answer, if it has grown and `SAVE_INTERVAL_S` have passed."""
        if self._answering and len(self._segments) > self._saved_segments and now - self._saved_at >= SAVE_INTERVAL_S:
            self._saved_at, self._saved_segments = now, len(self._segments)
            self.session.write_partial(len(self.conversation.turns), self.partial_answer("interrupted", stats))

    def answer(self, answer: Answer) -> None:
        """Set the answer of the newest turn."""
        self._answering = False
        self.conversation.answer(answer)
        self.session.write_answer(answer)

    def rewind(self, turns: int) -> None:
        """Keep the first `turns` turns."""
        self.conversation.rewind(turns)
        self.session.write_rewind(turns)

    def set_system(self, system: str) -> None:
        self.conversation.system = system
        if self._session:
            self._session.write_system(system)

    def set_model(self, name: str) -> None:
        if self._session:
            self._session.write_model(name)

    def open(self, session: Session | None, conversation: Conversation) -> None:
        """Go on with another chat."""
        self.close()
        self._session, self.conversation = session, conversation

    def close(self) -> None:
        if self._session:
            self._session.close()
