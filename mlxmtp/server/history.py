"""The conversation so far as chat messages. Content that is no text is replaced by a line of text.

Clients keep what they sent and got, also from other models: images, calls of hosted tools, sealed items. Each request
brings all of it again, so a refusal would end the session. Only content of the newest user message is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mlxmtp.server.body import JsonObject, is_nested_too_deeply
from mlxmtp.server.errors import ApiError
from mlxmtp.server.tools import ToolSet

Message = dict[str, Any]
"""A chat message, as chat templates take it."""

TEXT_PARTS = ("text", "input_text", "output_text", "refusal", "reasoning_text", "summary_text")
"""Types of content parts that are text."""
MEDIA = (
    *("image", "image_url", "input_image", "computer_screenshot", "audio", "input_audio", "video", "video_url"),
    *("input_video", "file", "input_file", "document", "container_upload"),
)
"""Types of content parts that only models with other senses or tools can read."""
OPAQUE = (
    *("type", "id", "call_id", "tool_use_id", "status", "caller", "signature", "fingerprint", "cache_control", "data"),
    *("file_data", "image_url", "encrypted_content", "encrypted_index", "encrypted_stdout"),
)
"""Fields that say nothing to a model."""
MEDIA_FIELDS = {"images": "image", "audio": "audio"}
"""Fields of a message, in Ollama's and OpenAI's spelling -> the type of the media that they hold."""
MAX_WORD = 500
"""Characters. A longer text without a space is encoded data, and no model can read it."""


class HistoryItem(JsonObject):
    """An object of the history: what other servers and clients made. A value of another type is read as it can be."""

    def string(self, name: str) -> str | None:
        value = self.get(name)
        if isinstance(value, Mapping) and isinstance(value.get("value"), str):
            value = value["value"]  # a text of OpenAI's Assistants
        return None if value is None else _as_text(value)

    def boolean(self, name: str) -> bool | None:
        value = self.get(name)
        return value if isinstance(value, bool | None) else str(value).lower() == "true"

    def object(self, name: str) -> HistoryItem | None:
        """The object; None: there is none."""
        value = self.get(name)
        return HistoryItem(value, self.path_of(name)) if isinstance(value, Mapping) else None

    def objects(self, name: str) -> list[JsonObject]:
        """A list of objects, or a single one. Other values become parts of text."""
        value = self.get(name)
        values = value if isinstance(value, list) else [value]
        path = self.path_of(name)
        return [_part(item, f"{path}[{i}]") for i, item in enumerate(values) if item is not None]


def history_items(body: JsonObject, name: str) -> list[HistoryItem]:
    """The messages or items in a field of the body.

    Raises:
        ApiError: it is no list of objects.
    """
    return [HistoryItem(item.content, f"{name}[{i}]") for i, item in enumerate(body.objects(name))]


def newest_user_message(roles: Sequence[str]) -> int:
    """The index of the message that the user has just written; -1 where the turn answers something else.

    Clients that show a tool's image to the model do so in a user message after the result. It counts as a result.

    Args:
        roles: role of each message or item: "user", "assistant", "tool" or "system".
    """
    last = [(i, role) for i, role in enumerate(roles) if role != "system"][-2:]
    if not last or last[-1][1] != "user" or last[0][1] == "tool":
        return -1
    return last[-1][0]


def text_content(item: JsonObject, tools: ToolSet, name: str = "content", *, newest: bool = False) -> str:
    """The text of a content field: a string, or a list of parts; arguments as of `parts_text`.

    Other values, which some clients send as a tool's result, become their JSON.
    """
    content = item.get(name)
    if newest and not isinstance(content, str | list | None):
        item.reject(name, "a string or a list of parts")
    is_part = isinstance(content, Mapping) and "type" in content
    parts = content if isinstance(content, list) else [content] if is_part else [_as_text(content)]
    path = item.path_of(name)
    found = [_part(part, f"{path}[{i}]") for i, part in enumerate(parts)]
    if name == "content":
        found += _media_fields(item)
    return parts_text(found, tools, newest=newest)


def parts_text(parts: Iterable[JsonObject], tools: ToolSet, *, newest: bool = False, separator: str = "") -> str:
    """The text of content parts. A part that is no text becomes a line.

    Args:
        tools: the tools that parts refer to or define.
        newest: the parts are of the newest user message.
        separator: comes between two texts.

    Raises:
        ApiError: a part of the newest user message is no text.
    """
    text, after_text = "", True
    for part in parts:
        kind = part.string("type")
        is_text = kind in TEXT_PARTS or (kind is None and "text" in part)
        piece = part.string("refusal" if kind == "refusal" else "text") or "" if is_text else None
        if piece is None:
            piece = _other_text(part, tools, newest)
        text += (separator if is_text and after_text else "\n") * bool(text) + piece
        after_text = is_text
    return text


def foreign_text(part: JsonObject) -> str:
    """A line in place of a part or item of another kind: its type, and the fields that a model can read."""
    kind = part.string("type")
    if kind in MEDIA:
        names = [part.get(name) for name in ("title", "filename", "name")]
        name = next((f" {json.dumps(name, ensure_ascii=False)}" for name in names if isinstance(name, str)), "")
        return f"[{kind}{name} left out: this model reads text only]"
    fields = readable(part.content)
    text = json.dumps(fields, ensure_ascii=False) if fields else "not readable here"
    return f"[{kind}: {text}]" if kind else text


def readable(value: Any) -> Any:
    """What a model can read of a JSON value; None: nothing."""
    if isinstance(value, Mapping):
        fields = {name: readable(inner) for name, inner in value.items() if name not in OPAQUE}
        return {name: inner for name, inner in fields.items() if inner not in (None, "")} or None
    if isinstance(value, list):
        return [inner for inner in map(readable, value) if inner is not None] or None
    is_data = isinstance(value, str) and (
        value.startswith("data:") or (len(value) > MAX_WORD and len(value.split(maxsplit=1)) == 1)
    )
    return None if is_data else value


def assistant_message(text: str, reasoning: str = "", tool_calls: Iterable[dict[str, Any]] = ()) -> Message:
    """An earlier answer of the conversation."""
    message: Message = {"role": "assistant", "content": text}
    if reasoning:
        message["reasoning_content"] = reasoning
    if tool_calls := list(tool_calls):
        message["tool_calls"] = tool_calls
    return message


def history_tool_call(name: Any, arguments: Any, call_id: Any) -> dict[str, Any]:
    """An earlier tool call of the conversation. Chat templates want its arguments as an object.

    Other arguments, such as JSON that was cut, become the argument "arguments": the model sees what it wrote.
    """
    if isinstance(arguments, str):
        arguments = _parsed(arguments)
    if not isinstance(arguments, dict):
        arguments = {} if arguments is None else {"arguments": arguments}
    function = {"name": str(name or "unknown"), "arguments": arguments}
    return {"type": "function", "id": str(call_id or ""), "function": function}


def tool_message(content: str, call_id: Any) -> Message:
    """The result of an earlier tool call."""
    return {"role": "tool", "content": content, "tool_call_id": str(call_id or "")}


def merge_leading_system(messages: Iterable[Message], field_name: str = "messages") -> list[Message]:
    """The messages with the leading system messages as one: many chat templates take only one.

    Later system messages stay where they are, so that the prompt begins as that of the turn before.

    Args:
        field_name: the field of the body that they came in.

    Raises:
        ApiError: there is no message to answer.
    """
    messages = [message for message in messages if message["role"] != "system" or message["content"]]
    count = next((i for i, message in enumerate(messages) if message["role"] != "system"), len(messages))
    if count == len(messages):
        found = "only system messages" if messages else "none"
        raise ApiError(f"{field_name}: there are {found}; expected at least one of the user", param=field_name)
    system = "\n\n".join(message["content"] for message in messages[:count])
    return [*([{"role": "system", "content": system}] if count else []), *messages[count:]]


def later_system_as_user(messages: Iterable[Message]) -> list[Message]:
    """The messages with each later system message joined to the user's or tool's message before it.

    After an answer it becomes a message of the user, to which the user's next message is joined.
    """
    found: list[Message] = []
    is_open = False  # the last message was a system message
    for message in messages:
        is_later = bool(found) and message["role"] == "system"
        joins = found[-1]["role"] in ("user", "tool") if is_later else is_open and message["role"] == "user"
        if joins:
            found[-1] = found[-1] | {"content": f"{found[-1]['content']}\n\n{message['content']}"}
        else:
            found.append({"role": "user", "content": message["content"]} if is_later else message)
        is_open = is_later and (is_open or not joins)
    return found


def _part(value: Any, path: str) -> HistoryItem:
    return HistoryItem(value if isinstance(value, Mapping) else {"type": "text", "text": _as_text(value)}, path)


def _media_fields(item: JsonObject) -> list[HistoryItem]:
    """A part for each picture or sound that stands in a field of the message, and not in its content."""
    found = []
    for name, kind in MEDIA_FIELDS.items():
        value = item.get(name)
        values = value if isinstance(value, list) else [value] if value else []
        found += [HistoryItem({"type": kind}, f"{item.path_of(name)}[{i}]") for i in range(len(values))]
    return found


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False)


def _other_text(part: JsonObject, tools: ToolSet, newest: bool) -> str:
    """The text of a part of another type than text."""
    kind = part.string("type")
    source = part.object("source") if kind == "document" else None
    if source and source.string("type") in ("text", "content"):
        title, is_text = part.string("title"), source.string("type") == "text"
        text = source.string("data") or "" if is_text else text_content(source, tools)
        return f"{title}\n{text}" if title else text
    if kind == "search_result":
        heads = (part.string("title"), part.string("source"), text_content(part, tools))
        return "\n".join(filter(None, heads))
    if kind in ("tool_reference", "tool_addition"):
        return tools.reference_text(part.object("tool") or part)
    if kind == "compaction" and isinstance(part.get("content"), str):
        return part.string("content") or ""
    if newest:
        path = part.path_of("type").removesuffix(".type")
        message = f"{path} is of type {kind}; this server reads text only"
        raise ApiError(message, code="unsupported_content", param=path)
    return foreign_text(part)


def _parsed(arguments: str) -> Any:
    """The JSON of arguments; the text itself where it is no JSON, or nested too deeply for a template."""
    try:
        parsed = json.loads(arguments or "null")
    except (ValueError, RecursionError):
        return arguments
    return arguments if is_nested_too_deeply(parsed) else parsed
