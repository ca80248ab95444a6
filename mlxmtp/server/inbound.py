"""Messages and tools as clients send them, as chat templates take them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from mlxmtp.server.fields import Fields
from mlxmtp.server.problems import ApiError
from mlxmtp.server.request import Message, function_tool

TEXTS = ("text", "input_text", "output_text", "refusal", "reasoning_text", "summary_text")


def chat_messages(body: Fields) -> list[Message]:
    """The `messages` of Chat Completions."""
    return with_one_system([_chat_message(one) for one in body.objects("messages")])


def with_one_system(messages: Iterable[Message], place: str = "messages") -> list[Message]:
    """System messages, wherever they stand, as one in front: many templates take no other.

    Args:
        place: the body's field that they came in.

    Raises:
        ApiError: there is nothing to answer.
    """
    messages = list(messages)
    system = [one["content"] for one in messages if one["role"] == "system" and one["content"]]
    others = [one for one in messages if one["role"] != "system"]
    if not others:
        found = "only system messages" if messages else "none"
        raise ApiError(f"{place}: there are {found}; expected at least one of the user", param=place)
    return [{"role": "system", "content": "\n\n".join(system)}, *others] if system else others


def text_of(item: Fields, name: str = "content") -> str:
    """A content: a string, or a list of parts of which all are texts."""
    content = item.any(name)
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        item.refuse(name, "a string or a list of parts")
    return "".join(_text_part(part, f"{item.at(name)}[{i}]") for i, part in enumerate(content))


def call(name: Any, arguments: Any, id: Any = None) -> dict[str, Any]:
    """A tool call of the history; templates want its arguments as an object."""
    if isinstance(arguments, str):
        try:
            read = json.loads(arguments or "{}")
        except ValueError:
            read = None
        arguments = read if isinstance(read, dict) else arguments
    return {"type": "function", "id": str(id or ""), "function": {"name": str(name), "arguments": arguments or {}}}


def said(text: str, reasoning: str = "", calls: Iterable[dict[str, Any]] = ()) -> Message:
    """An answer of the history."""
    message: Message = {"role": "assistant", "content": text}
    if reasoning:
        message["reasoning_content"] = reasoning
    if calls := list(calls):
        message["tool_calls"] = calls
    return message


@dataclass(frozen=True)
class ToolSet:
    """The tools of a request.

    Args:
        tools: the functions, namespaces laid flat. dropped: what is none, for the log.
        namespaces: of a flat name, the namespace and the name there.
    """

    tools: list[dict[str, Any]] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    namespaces: dict[str, tuple[str, str]] = field(default_factory=dict)


def offer(items: list[Fields], read: Callable[[Fields], dict[str, Any] | None]) -> ToolSet:
    """The tools among `items`; of two with a name, the later one gets its namespace's before its own."""
    found = ToolSet()
    for item in items:
        if item.any("type") != "namespace":
            _add(found, item, read)
            continue
        for inner in item.objects("tools"):
            _add(found, inner, read, item.text("name"))
    return found


def _add(
    found: ToolSet, item: Fields, read: Callable[[Fields], dict[str, Any] | None], namespace: str | None = None
) -> None:
    one = read(item)
    if one is None:
        found.dropped.append(f"tool {item.any('name') or item.any('type')}")
        return
    if (item.object("function") or item).any("strict") is True:  # arguments are checked, not forced; SDKs ask for it
        found.dropped.append(f"strict of tool {one['function']['name']}")
    found.tools.append(one)
    if namespace:
        function = one["function"]
        own, taken = function["name"], {tool["function"]["name"] for tool in found.tools[:-1]}
        function["name"] = f"{namespace}__{own}" if own in taken else own
        found.namespaces[function["name"]] = namespace, own


def function_fields(item: Fields) -> dict[str, Any] | None:
    """A tool of Chat Completions or Responses; None: one of another kind."""
    if item.any("type") not in ("function", None):
        return None
    function = item.object("function") or item
    name = function.text("name")
    if not name:
        function.refuse("name", "the name of the function")
    parameters = function.object("parameters")
    return function_tool(str(name), function.text("description"), parameters and function.any("parameters"))


def choose(
    tools: list[dict[str, Any]], choice: str, named: str | None = None, among: Iterable[str] | None = None
) -> tuple[tuple[str, ...], str]:
    """What may be called: `allowed` and `choice` of a `Request`. Of one tool, "required" is that tool by its name.

    Args:
        choice: "auto", "none", "required" or, with a name, anything. among: the names that are allowed.
    """
    names = tuple(dict.fromkeys(tool["function"]["name"] for tool in tools))
    if among is not None:
        among = set(among)
        names = tuple(name for name in names if name in among)
    if choice == "none":
        return (), "auto"
    if choice == "required":
        if not names:
            raise ApiError("tool_choice asks for a call, but there are no function tools", param="tool_choice")
        named = names[0] if len(names) == 1 else named
    if named is None:
        return names, choice
    if named not in names:
        raise ApiError(f"tool_choice names {named!r}, which is not among the tools", param="tool_choice")
    return (named,), named


def tool_choice(body: Fields, tools: list[dict[str, Any]]) -> tuple[tuple[str, ...], str]:
    """The `tool_choice` of Chat Completions and Responses, applied."""
    wanted = body.any("tool_choice")
    if wanted is None or isinstance(wanted, str):
        if wanted not in (None, "auto", "none", "required"):
            body.refuse("tool_choice", "auto, none, required or a function")
        return choose(tools, wanted or "auto")
    choice = Fields(wanted, "tool_choice")
    kind = choice.text("type")
    if kind == "function":
        return choose(tools, "named", (choice.object("function") or choice).text("name") or "")
    if kind == "allowed_tools":
        holder = choice.object("allowed_tools") or choice
        names = [str((one.object("function") or one).any("name")) for one in holder.objects("tools")]
        mode = holder.text("mode") or "auto"
        if mode not in ("auto", "required"):
            holder.refuse("mode", "auto or required")
        return choose(tools, mode, among=names)
    choice.refuse("type", "function or allowed_tools")
    raise AssertionError


def _chat_message(item: Fields) -> Message:
    role = item.text("role")
    if role in ("system", "developer"):
        return {"role": "system", "content": text_of(item)}
    if role == "user":
        return {"role": "user", "content": text_of(item)}
    if role in ("tool", "function"):
        return {"role": "tool", "content": text_of(item), "tool_call_id": str(item.any("tool_call_id") or "")}
    if role == "assistant":
        reasoning = text_of(item, "reasoning_content") or text_of(item, "reasoning")
        calls = [_chat_call(one) for one in item.objects("tool_calls")]
        return said(text_of(item), reasoning, calls)
    item.refuse("role", "system, developer, user, assistant or tool")
    raise AssertionError


def _chat_call(item: Fields) -> dict[str, Any]:
    function = item.object("function")
    if function is None or not function.text("name"):
        item.refuse("function", "an object with the name of the function")
        raise AssertionError
    return call(function.any("name"), function.any("arguments"), item.any("id"))


def _text_part(part: Any, at: str) -> str:
    if isinstance(part, str):
        return part
    fields = Fields(part, at)
    kind = fields.text("type")
    if kind not in TEXTS:
        raise ApiError(f"{at} is of type {kind}; this server reads text only", code="unsupported_content", param=at)
    return fields.text("refusal" if kind == "refusal" else "text") or ""
