"""The lines of a saved chat: JSON each, for what was said and what was taken back."""

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
    """A saved chat that is not there, cannot be read, or is open elsewhere."""


def line(record: dict[str, Any] | str) -> bytes:
    """A record as it is written."""
    try:
        return json.dumps(record, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # half a surrogate pair, which only JSON's own escapes can say
        return json.dumps(record).encode() + b"\n"


def record_of(answer: Answer) -> dict[str, Any]:
    """An answer: the message, then how it came."""
    stats = asdict(answer.stats) if answer.stats else None
    return {**answer.message, "finish": answer.reason, "speedup": answer.speedup, "stats": stats}


def answer_of(record: dict[str, Any]) -> Answer:
    """The answer of a record.

    Raises:
        KeyError, TypeError: it is none.
    """
    stats = record.get("stats")
    if stats:
        stats = Stats.from_dict(stats)
    message: Message = {key: record[key] for key in MESSAGE if key in record}
    return Answer(message, record["finish"], stats or None, record.get("speedup"))


def read(file: Path) -> tuple[dict[str, Any], Conversation]:
    """What the chat is (model, title), and what was said.

    Raises:
        SessionError: the file is no chat. A last line that a crash cut short is left out.
    """
    head: dict[str, Any] = {}
    conversation = Conversation()
    try:
        for number, record in enumerate(_records(file)):
            if number == 0 and record.get("type") != "chat":
                raise SessionError(f"{file}: no chat of mlxmtp; expected a first line with type chat")
            _take(record, head, conversation)
    except OSError as error:
        raise SessionError(f"{file}: cannot be read ({error})") from error
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise SessionError(f"{file}: a record of this chat is incomplete ({error!r})") from error
    if not head:
        raise SessionError(f"{file}: empty; expected a chat of mlxmtp")
    return head, conversation


def whole(content: bytes) -> bytes:
    """A file's content without a last line that a crash cut short; with its end, where that alone was missing."""
    start = content.rfind(b"\n") + 1
    try:
        json.loads(content[start:])
    except ValueError:  # UnicodeDecodeError is one
        return content[:start]
    return content + b"\n"


def _records(file: Path) -> Iterator[dict[str, Any]]:
    # not splitlines: line ends that only Unicode knows are text
    lines = whole(file.read_bytes()).split(b"\n")
    for number, content in enumerate(lines[:-1], start=1):
        try:
            yield json.loads(content)
        except ValueError as error:
            raise SessionError(f"{file}, line {number}: not valid JSON ({error})") from error


def _take(record: dict[str, Any], head: dict[str, Any], conversation: Conversation) -> None:
    match record.get("role") or record.get("type"):
        case "chat":
            head.update(model=record["model"], created=record["created"])
        case "model":
            head["model"] = record["name"]
        case "title":
            head["title"] = record["text"]
        case "system":
            conversation.system = record["content"]
        case "user":
            conversation.ask(record["content"], record.get("sent", record["content"]))
        case "assistant":
            conversation.answer(answer_of(record))
        case "rewind":
            conversation.rewind(record["turns"])
