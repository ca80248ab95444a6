"""The lines of a saved chat: a JSON record each, for messages and for turns that were removed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mlxmtp.decoding.stats import Stats
from mlxmtp.errors import MlxmtpError
from mlxmtp.files import parse_json, read_regular
from mlxmtp_tui.conversation import Answer, Conversation, Message

MESSAGE = ("role", "content", "reasoning_content", "tool_calls")
MAX_NUMBER = 1e18
"""Greatest number of a turn's statistics; a greater one is no measurement."""


class SessionError(MlxmtpError):
    """A saved chat does not exist, cannot be read, or is open elsewhere."""


def line(record: dict[str, Any] | str) -> bytes:
    """The line of a record, with its line end."""
    try:
        return json.dumps(record, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # half a surrogate pair, which only JSON's own escapes can write
        return json.dumps(record).encode() + b"\n"


def answer_record(answer: Answer) -> dict[str, Any]:
    """The record of an answer: the message, and how it ended."""
    stats = asdict(answer.stats) if answer.stats else None
    return {**answer.message, "finish": answer.reason, "speedup": answer.speedup, "stats": stats}


def read_answer(record: dict[str, Any]) -> Answer:
    """The answer of a record.

    Raises:
        KeyError, TypeError, AttributeError: the record is not an answer.
    """
    stats, speedup = record.get("stats"), record.get("speedup")
    if stats:
        policy = {"policy": _text(stats.get("policy", ""))}
        stats = Stats.from_dict({name: _number(value) for name, value in stats.items() if name != "policy"} | policy)
    message: Message = {key: record[key] for key in MESSAGE if record.get(key) is not None}
    for text in (message.get("content", ""), message.get("reasoning_content", "")):
        _text(text)
    for call in message.get("tool_calls", ()):
        _text(call["function"]["name"])
    return Answer(message, _text(record["finish"]), stats or None, None if speedup is None else _number(speedup))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected a text, found {value!r:.60}")
    return value


def _number(value: Any) -> Any:
    """Return a number, or a list of numbers."""
    for number in value if isinstance(value, list) else [value]:
        if not isinstance(number, int | float) or not abs(number) <= MAX_NUMBER:
            raise TypeError(f"expected a number, found {number!r:.60}")
    return value


def read(file: Path) -> tuple[dict[str, Any], Conversation]:
    """Read a saved chat. A last line that a crash cut short is left out.

    Returns:
        The header (model, created, title) and the conversation.

    Raises:
        SessionError: the file is not a chat.
    """
    header: dict[str, Any] = {}
    conversation = Conversation()
    try:
        for number, record in enumerate(_records(file)):
            if number == 0 and record.get("type") != "chat":
                raise SessionError(f"{file}: no chat of mlxmtp; expected a first line with type chat")
            _apply(record, header, conversation)
    except OSError as error:
        raise SessionError(f"{file}: cannot be read ({error})") from error
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise SessionError(f"{file}: a record of this chat is incomplete ({error!r})") from error
    if not header:
        raise SessionError(f"{file}: empty; expected a chat of mlxmtp")
    return header, conversation


def without_cut_line(content: bytes) -> bytes:
    """The content without a last line that a crash cut short. Where only its line end is missing, that is added."""
    start = content.rfind(b"\n") + 1
    try:
        parse_json(content[start:])
    except ValueError:  # UnicodeDecodeError is one
        return content[:start]
    return content + b"\n"


def _records(file: Path) -> Iterator[dict[str, Any]]:
    # not splitlines: the text may hold Unicode's own line ends
    lines = without_cut_line(read_regular(file)).split(b"\n")
    for number, content in enumerate(lines[:-1], start=1):
        try:
            yield parse_json(content)
        except ValueError as error:
            raise SessionError(f"{file}, line {number}: not valid JSON ({error})") from error


def _apply(record: dict[str, Any], header: dict[str, Any], conversation: Conversation) -> None:
    match record.get("role") or record.get("type"):
        case "chat":
            header.update(model=_text(record["model"]), created=_text(record["created"]))
        case "model":
            header["model"] = _text(record["name"])
        case "title":
            header["title"] = _text(record["text"])
        case "system":
            conversation.system = _text(record["content"])
        case "user":
            conversation.ask(_text(record["content"]), _text(record.get("sent", record["content"])))
        case "assistant":
            conversation.answer(read_answer(record))
        case "rewind":
            conversation.rewind(record["turns"])
