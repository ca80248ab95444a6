"""What the chat works with, as it sees them: the screen, and what it was started with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from mlxmtp.engine.request import GenerationOptions
from mlxmtp.exactness.guarantee import Identity
from mlxmtp.worker.messages import Comparison


class View(Protocol):
    """What the chat asks of the screen."""

    def turn_began(self) -> None:
        """The newest turn of the conversation has no answer yet."""

    def turn_said(self, parts: list[list[str]]) -> None:
        """More of its answer: [kind, text] pairs."""

    def turn_ended(self) -> None:
        """It has one."""

    def turns_changed(self) -> None:
        """Turns went away, or another conversation is there."""

    def measured(self, outcome: Comparison) -> None:
        """A measurement is complete."""

    def state_changed(self) -> None:
        """Status or figures."""

    def say(self, text: str, *, error: bool = False) -> None:
        """A message to the user."""


@dataclass(frozen=True)
class Options:
    """What `mlxmtp chat` was started with. choose: ask for a model first. Others: as in `mlxmtp.load`."""

    model: str | None = None
    head: str | None = None
    mtp: bool = True
    choose: bool = False
    system: str = ""
    settings: GenerationOptions = GenerationOptions(max_tokens=4096)  # noqa: RUF009 - it is frozen
    identity: Identity = "fast"
    draft_vocab: str | None = None
