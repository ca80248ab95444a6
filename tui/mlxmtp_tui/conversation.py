"""A conversation: its turns, and the messages that the model reads. No screen, no engine."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from mlxmtp.decoding.stats import Stats

Message = dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """What the model said.

    Args:
        message: as the next prompt has it: content, reasoning_content, tool_calls.
        reason: "stop", "length", "interrupted", or "failed" where the engine gave out.
        speedup: against measured plain decoding, where that was known.
    """

    message: Message
    reason: str
    stats: Stats | None = None
    speedup: float | None = None

    @property
    def text(self) -> str:
        """What is copied and exported; thinking is not part of it."""
        return str(self.message.get("content") or "")

    @property
    def thinking(self) -> str:
        return str(self.message.get("reasoning_content") or "")

    @property
    def calls(self) -> list[dict[str, Any]]:
        """Tool calls: name and arguments."""
        return [call["function"] for call in self.message.get("tool_calls", ())]

    @property
    def empty(self) -> bool:
        return not (self.text or self.thinking or self.calls)


@dataclass(frozen=True)
class Turn:
    """What was typed, what was sent for it (with the files that it names), and the answer, once there is one."""

    typed: str
    sent: str
    answer: Answer | None = None


@dataclass
class Conversation:
    """Turns in order, under a system prompt."""

    system: str = ""
    turns: list[Turn] = field(default_factory=list)

    def messages(self) -> list[Message]:
        """The prompt for the newest turn. Questions without an answer become one with the next: roles alternate."""
        said: list[Message] = [{"role": "system", "content": self.system}] if self.system else []
        for turn in self.turns:
            if said and said[-1]["role"] == "user":
                said[-1]["content"] += f"\n\n{turn.sent}"
            else:
                said.append({"role": "user", "content": turn.sent})
            if turn.answer and not turn.answer.empty:
                said.append(turn.answer.message)
        return said

    def ask(self, typed: str, sent: str) -> None:
        self.turns.append(Turn(typed, sent))

    def answer(self, answer: Answer) -> None:
        """The newest turn's answer."""
        self.turns[-1] = replace(self.turns[-1], answer=answer)

    def rewind(self, turns: int) -> None:
        """Keep the first `turns` turns."""
        del self.turns[turns:]

    @property
    def unanswered(self) -> bool:
        """Whether the newest turn has no answer."""
        return bool(self.turns) and self.turns[-1].answer is None

    @property
    def last_answer(self) -> Answer | None:
        return next((turn.answer for turn in reversed(self.turns) if turn.answer and not turn.answer.empty), None)

    @property
    def title(self) -> str:
        """The first line that was typed."""
        return next((line.strip() for turn in self.turns for line in turn.typed.splitlines() if line.strip()), "")


def as_markdown(conversation: Conversation, model: str) -> str:
    """The conversation as a document."""
    parts = [f"# {conversation.title or 'Conversation'}", f"Model: {model}"]
    if conversation.system:
        parts += ["## System", conversation.system]
    for turn in conversation.turns:
        parts += ["## You", turn.typed]
        if answer := turn.answer:
            parts += ["## Model"]
            if answer.thinking:
                parts += [f"<details><summary>Thinking</summary>\n\n{answer.thinking}\n\n</details>"]
            parts += [text for text in (answer.text, *map(call_line, answer.calls)) if text]
    return "\n\n".join(parts) + "\n"


def call_line(call: dict[str, Any]) -> str:
    """A tool call as code: name(argument=value, ...)."""
    given = call.get("arguments")
    inside = ", ".join(f"{name}={value!r}" for name, value in given.items()) if isinstance(given, dict) else str(given)
    return f"`{call.get('name')}({inside})`"
