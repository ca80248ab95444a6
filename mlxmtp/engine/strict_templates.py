"""Messages in the forms that strict chat templates take, each simpler than the one before."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Message = Mapping[str, Any]
SYSTEM_ROLES = ("system", "developer")
CALL_ID_LENGTH = 9
"""Characters of a call's id: Mistral's templates take no other number."""


def simpler_forms(messages: Sequence[Message]) -> list[list[Message]]:
    """Return the messages in three forms for templates that refuse them as they are.

    1. Ids of calls are short, and no content is an empty text. A system message after the first becomes a message of
       the user, and neighbours of one role are joined, so that roles alternate.
    2. The first system message becomes the beginning of the user's first message too.
    3. Calls are text of the answer, and results of tools are text of the user.
    """
    short = [_with_short_ids(message) for message in messages]
    later = [_as_user(message) if i else message for i, message in enumerate(short)]
    turned = [_as_user(message) for message in short]
    return [_joined(later), _joined(turned), _joined(map(_as_text, turned))]


def _as_user(message: Message) -> Message:
    return {**message, "role": "user"} if message.get("role") in SYSTEM_ROLES else message


def _joined(messages: Iterable[Message]) -> list[Message]:
    """The messages with neighbours of one role as one. Messages with calls, and results of tools, stay as they are."""
    joined: list[Message] = []
    for message in messages:
        before = joined[-1] if joined else {}
        if _is_plain(before) and _is_plain(message) and before["role"] == message["role"]:
            texts = before["content"], message["content"]
            joined[-1] = {**before, "content": "\n\n".join(filter(None, texts))}
        else:
            joined.append(message)
    return joined


def _is_plain(message: Message) -> bool:
    """Whether a message is a text of the user or of the model."""
    text = isinstance(message.get("content"), str)
    return text and message.get("role") in ("user", "assistant") and not message.get("tool_calls")


def _with_short_ids(message: Message) -> Message:
    """The message with short ids of calls, and with a text where it has no content."""
    found = {**message, "content": "" if message.get("content") is None else message["content"]}
    if message.get("tool_calls"):
        found["tool_calls"] = [{**call, "id": _short(call.get("id"))} for call in message["tool_calls"]]
    if "tool_call_id" in message:
        found["tool_call_id"] = _short(message["tool_call_id"])
    return found


def _short(call_id: Any) -> str:
    return hashlib.sha256(str(call_id).encode(errors="replace")).hexdigest()[:CALL_ID_LENGTH]


def _as_text(message: Message) -> Message:
    """A message of the user or of the model whose content is a text."""
    content = message.get("content")
    text = content if isinstance(content, str) else "" if content is None else json.dumps(content, default=str)
    if message.get("role") == "tool":
        return {"role": "user", "content": f"Result of the tool:\n{text}"}
    calls = [json.dumps(call.get("function", call), ensure_ascii=False) for call in message.get("tool_calls") or ()]
    others = {name: value for name, value in message.items() if name != "tool_calls"}
    return others | {"content": "\n".join(filter(None, [text, *calls]))}
