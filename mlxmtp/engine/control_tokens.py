"""Control tokens that the text of a message spells: they are tokenised as text, so that no text ends a turn."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mlxmtp.errors import PromptError

MARKERS = ("think_start", "think_end", "tool_call_start", "tool_call_end")
"""Attributes of mlx-lm's `TokenizerWrapper`: control tokens that many tokenizers do not call special."""
MARKS = tuple(map(chr, range(0xE000, 0xF900)))
"""Characters for private use, which no tokenizer has a meaning for."""


@dataclass(frozen=True)
class Escape:
    """Puts a mark into each control token that a text spells. The tokenizer gets the text before and after the mark.

    Args:
        special: special tokens, and added tokens that the chat template writes.
        markers: the markers of thinking and tool calls. Answers keep theirs: chat templates look for them.
        mark: a character that occurs in none of the texts.
    """

    special: tuple[str, ...]
    markers: tuple[str, ...]
    mark: str

    def messages(self, messages: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The messages with marks."""
        return [self._message(message) for message in messages]

    def everywhere(self, value: Any) -> Any:
        """A JSON value with marks in all its strings, the keys of objects too."""
        return map_strings(value, lambda text: self._escape(text, (*self.special, *self.markers)))

    def split(self, text: str) -> list[tuple[int, str]]:
        """The pieces of a rendered text between its marks, each with the character at which it begins.

        A template that prints an object as JSON or as Python writes a mark as its escape sequence.
        """
        marks = [match.span() for match in re.finditer(rf"{self.mark}|\\+{_code(self.mark)}", text)]
        starts = [0, *(end for _, end in marks)]
        return [(start, text[start:end]) for start, end in zip(starts, [*(at for at, _ in marks), None], strict=True)]

    def _message(self, message: Mapping[str, Any]) -> dict[str, Any]:
        if message.get("role") != "assistant":
            return dict(self.everywhere(message))
        calls = {"tool_calls": self.everywhere(message["tool_calls"])} if "tool_calls" in message else {}
        return dict(map_strings(message, lambda text: self._escape(text, self.special))) | calls

    def _escape(self, text: str, names: tuple[str, ...]) -> str:
        for name in names:
            text = text.replace(name, name[0] + self.mark + name[1:])
        return text


def escape_for(tokenizer: Any, tokens: Iterable[int], *values: Any) -> Escape | None:
    """Return the escape that these texts need; None: no control token of the prompt comes from them.

    Args:
        tokenizer: mlx-lm's `TokenizerWrapper`.
        tokens: token ids of the prompt, tokenised without an escape.
        values: its messages, its tools, and further variables of its template.

    Raises:
        PromptError: the texts hold each character for private use.
    """
    markers = {str(getattr(tokenizer, name)) for name in MARKERS if getattr(tokenizer, name)}
    sources = list(_strings(tokenizer.chat_template))
    texts = list(_strings(values))
    added = tokenizer.added_tokens_decoder
    spelled = {
        token.content
        for token in (added[id] for id in set(tokens) if id in added)
        if len(token.content) > 1
        and any(token.content in text for text in texts)
        and (token.special or token.content in markers or _is_written(token.content, sources))
    }
    if not spelled:
        return None
    mark = next((mark for mark in MARKS if not any(mark in text or _code(mark) in text for text in texts)), None)
    if mark is None:
        raise PromptError("the prompt has all characters for private use, U+E000 to U+F8FF; expected fewer")
    return Escape(tuple(sorted(spelled - markers)), tuple(sorted(spelled & markers)), mark)


def _is_written(name: str, sources: Iterable[str]) -> bool:
    """Whether a chat template writes an added token. A word or a space is no control token: templates compare roles."""
    return re.search(r"[^\w\s]", name) is not None and any(name in source for source in sources)


def _code(mark: str) -> str:
    """The escape sequence of a mark, without its backslash."""
    return f"u{ord(mark):04x}"


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _strings(key)
            yield from _strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)


def map_strings(value: Any, change: Callable[[str], Any]) -> Any:
    """Return a JSON value with its strings changed, the keys of objects too."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {map_strings(key, change): map_strings(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [map_strings(item, change) for item in value]
    return value
