"""Control tokens that the text of a message spells: they are tokenised as text, so that no text ends a turn."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

MARKERS = ("think_start", "think_end", "tool_call_start", "tool_call_end")
"""Attributes of mlx-lm's `TokenizerWrapper`: control tokens that many tokenizers do not call special."""


@dataclass(frozen=True)
class Escape:
    """Puts a mark into each control token that a text spells. The tokenizer gets the text before and after the mark.

    Args:
        special: the tokenizer's special tokens.
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
        """A JSON value with marks in all its strings."""
        return _map_strings(value, lambda text: self._escape(text, (*self.special, *self.markers)))

    def _message(self, message: Mapping[str, Any]) -> dict[str, Any]:
        if message.get("role") != "assistant":
            return dict(self.everywhere(message))
        calls = {"tool_calls": self.everywhere(message["tool_calls"])} if "tool_calls" in message else {}
        return dict(_map_strings(message, lambda text: self._escape(text, self.special))) | calls

    def _escape(self, text: str, names: tuple[str, ...]) -> str:
        for name in names:
            text = text.replace(name, name[0] + self.mark + name[1:])
        return text


def escape_for(tokenizer: Any, tokens: Iterable[int], *values: Any) -> Escape | None:
    """Return the escape that these texts need; None: no control token of the prompt comes from them.

    Args:
        tokenizer: mlx-lm's `TokenizerWrapper`.
        tokens: token ids of the prompt, tokenised without an escape.
        values: its messages and tools.
    """
    markers = {str(getattr(tokenizer, name)) for name in MARKERS if getattr(tokenizer, name)}
    added = tokenizer.added_tokens_decoder
    names = {added[token].content: added[token].special for token in set(tokens) if token in added}
    texts = list(_strings(values))
    spelled = [name for name in names if len(name) > 1 and any(name in text for text in texts)]
    special = tuple(name for name in spelled if names[name] and name not in markers)
    within = tuple(name for name in spelled if name in markers)
    if not (special or within):
        return None
    private_use = map(chr, range(0xE000, 0xF900))
    return Escape(special, within, next(mark for mark in private_use if not any(mark in text for text in texts)))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)


def _map_strings(value: Any, change: Any) -> Any:
    """A JSON value with its strings changed, the keys of objects left as they are."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _map_strings(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_map_strings(item, change) for item in value]
    return value
