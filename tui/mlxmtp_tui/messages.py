"""What the chat tells the screen: Textual messages that `Chat` posts and `ChatApp` handles."""

from __future__ import annotations

from dataclasses import dataclass

from textual.message import Message

from mlxmtp.worker.messages import Comparison
from mlxmtp_tui.conversation import Answer, ChatTurn


@dataclass
class TurnStarted(Message):
    """The user has sent a message; its answer is to come."""

    turn: ChatTurn


@dataclass
class TurnGrew(Message):
    """There is more of the answer: [kind, text] pairs."""

    segments: list[list[str]]


@dataclass
class TurnFinished(Message):
    """The answer is complete, or was stopped."""

    answer: Answer


@dataclass
class TurnsReplaced(Message):
    """Turns were removed, or another conversation is open; these are the turns now."""

    turns: list[ChatTurn]


@dataclass
class Measured(Message):
    """A comparison with plain decoding is complete."""

    comparison: Comparison


class StateChanged(Message):
    """The status or the statistics have changed; one message stands for several."""

    def can_replace(self, message: Message) -> bool:
        return isinstance(message, StateChanged)


@dataclass
class Notice(Message):
    """A notification for the user."""

    text: str
    error: bool = False
