"""A conversation: its turns, and the messages that the model reads. No screen, no engine."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from mlxmtp.decoding.stats import Stats

Message = dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """The model's answer to a turn.

    Args:
        message: the assistant's message of later prompts: content, reasoning_content, tool_calls.
        reason: "stop", "length", "interrupted", or "failed" where the engine failed.
        speedup: ratio to the rate of plain decoding, where that was measured.
    """

    message: Message
    reason: str
    stats: Stats | None = None
    speedup: float | None = None

    @property
    def text(self) -> str:
        """The text without the thinking, as it is copied and exported."""
        return str(self.message.get("content") or "")

    @property
    def thinking(self) -> str:
        return str(self.message.get("reasoning_content") or "")

    @property
    def calls(self) -> list[dict[str, Any]]:
        """Tool calls, each with its name and arguments."""
        return [call["function"] for call in self.message.get("tool_calls", ())]

    @property
    def empty(self) -> bool:
        return not (self.text or self.thinking or self.calls)


@dataclass(frozen=True)
class ChatTurn:
    """What the user typed, what was sent (with the files that it mentions), and the answer once there is one."""

    typed: str
    sent: str
    answer: Answer | None = None


@dataclass
class Conversation:
    """Turns in order, under a system prompt."""

    system: str = ""
    turns: list[ChatTurn] = field(default_factory=list)

    def messages(self) -> list[Message]:
        """The prompt of the newest turn. Roles alternate: unanswered questions are joined with the next one."""
        messages: list[Message] = [{"role": "system", "content": self.system}] if self.system else []
        for turn in self.turns:
            if messages and messages[-1]["role"] == "user":
                messages[-1]["content"] += f"\n\n{turn.sent}"
            else:
                messages.append({"role": "user", "content": turn.sent})
            if turn.answer and not turn.answer.empty:
                messages.append(turn.answer.message)
        return messages

    def messages_to_measure(self) -> list[Message]:
        """A prompt for `/bench`: it ends with a user's message, made up where there is none."""
        messages = self.messages() or [{"role": "user", "content": "Tell me a story."}]
        return messages + ([{"role": "user", "content": "Go on."}] if messages[-1]["role"] == "assistant" else [])

    def ask(self, typed: str, sent: str) -> None:
        """Add a turn."""
        self.turns.append(ChatTurn(typed, sent))

    def answer(self, answer: Answer) -> None:
        """Set the answer of the newest turn."""
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
        """The newest answer that is not empty."""
        return next((turn.answer for turn in reversed(self.turns) if turn.answer and not turn.answer.empty), None)

    @property
    def stats(self) -> list[Stats]:
        """Statistics of the answers that have them."""
        return [turn.answer.stats for turn in self.turns if turn.answer and turn.answer.stats]

    @property
    def title(self) -> str:
        """The first line that was typed."""
        return next((line.strip() for turn in self.turns for line in turn.typed.splitlines() if line.strip()), "")


def partial_message(segments: Iterable[list[str]]) -> Message:
    """The message of an incomplete answer, from its [kind, text] pairs. Tool calls stay text: they are not parsed."""
    texts = {"text": "", "thinking": "", "tool": ""}
    for kind, text in segments:
        texts[kind] += text
    message = {"role": "assistant", "content": texts["text"] + (f"\n{texts['tool']}" if texts["tool"] else "")}
    return message | ({"reasoning_content": texts["thinking"]} if texts["thinking"] else {})


def as_markdown(conversation: Conversation, model: str) -> str:
    """The conversation as a Markdown document."""
    sections = [f"# {conversation.title or 'Conversation'}", f"Model: {model}"]
    if conversation.system:
        sections += ["## System", conversation.system]
    for turn in conversation.turns:
        sections += ["## You", turn.typed]
        if answer := turn.answer:
            sections += ["## Model"]
            if answer.thinking:
                sections += [f"<details><summary>Thinking</summary>\n\n{answer.thinking}\n\n</details>"]
            sections += [text for text in (answer.text, *map(format_call, answer.calls)) if text]
    return "\n\n".join(sections) + "\n"


def format_call(call: dict[str, Any]) -> str:
    """A tool call as code: `name(argument=value, ...)`."""
    given = call.get("arguments")
    inside = ", ".join(f"{name}={value!r}" for name, value in given.items()) if isinstance(given, dict) else str(given)
    return f"`{call.get('name')}({inside})`"
