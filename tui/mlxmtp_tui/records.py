"""The lines of a saved chat: a JSON record each, for messages and for turns that were removed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mlxmtp.decoding.stats import Stats
from mlxmtp.errors import MlxmtpError
from mlxmtp_tui.conversation import Answer, Conversation, Message

MESSAGE = ("role", "content", "reasoning_content", "tool_calls")


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
        KeyError, TypeError: the record is not an answer.
    """
    stats = record.get("stats")
    if stats:
        stats = Stats.from_dict(stats)
    message: Message = {key: record[key] for key in MESSAGE if key in record}
    return Answer(message, record["finish"], stats or None, record.get("speedup"))


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
        json.loads(content[start:])
    except ValueError:  # UnicodeDecodeError is one
        return content[:start]
    return content + b"\n"


def _records(file: Path) -> Iterator[dict[str, Any]]:
    # not splitlines: the text may hold Unicode's own line ends
    lines = without_cut_line(file.read_bytes()).split(b"\n")
    for number, content in enumerate(lines[:-1], start=1):
        try:
            yield json.loads(content)
        except ValueError as error:
            raise SessionError(f"{file}, line {number}: not valid JSON ({error})") from error


def _apply(record: dict[str, Any], header: dict[str, Any], conversation: Conversation) -> None:
    match record.get("role") or record.get("type"):
        case "chat":
            header.update(model=record["model"], created=record["created"])
        case "model":
            header["model"] = record["name"]
        case "title":
            header["title"] = record["text"]
        case "system":
            conversation.system = record["content"]
        case "user":
            conversation.ask(record["content"], record.get("sent", record["content"]))
        case "assistant":
            conversation.answer(read_answer(record))
        case "rewind":
            conversation.rewind(record["turns"])
