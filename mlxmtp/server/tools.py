"""The tools of a request: parsed, found by reference, and chosen from."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mlxmtp.server.body import JsonObject
from mlxmtp.server.errors import ApiError

Tool = dict[str, Any]
"""A function tool, as chat templates take it: {"type": "function", "function": {...}}."""
ParseTool = Callable[[JsonObject], Tool | None]
"""Parses one tool of a protocol; None: a hosted tool, which this server does not have."""

FREEFORM: Mapping[str, Any] = {"type": "object", "properties": {"input": {"type": "string"}}, "required": ["input"]}
"""The parameters of a freeform tool: its text as one string."""
HOSTED_SEARCH = "tool_search"
"""Begins the types of the hosted tools that find deferred tools."""


def _no_tool(_: JsonObject) -> Tool | None:
    return None


@dataclass
class ToolSet:
    """The tools of a request.

    Args:
        parse_tool: parses a tool of the protocol.
        tools: the function tools of the prompt; those of namespaces are among them.
        deferred: tools that may be called and are not in the prompt: the conversation shows their definitions.
        freeform: names of the tools whose calls are texts.
        dropped: tools and settings that this server ignores, for the log.
        namespaces: name of a tool here -> (namespace, name there).
    """

    parse_tool: ParseTool = field(default=_no_tool, compare=False)
    tools: list[Tool] = field(default_factory=list)
    deferred: list[Tool] = field(default_factory=list)
    freeform: set[str] = field(default_factory=set)
    dropped: list[str] = field(default_factory=list)
    namespaces: dict[str, tuple[str, str]] = field(default_factory=dict)

    @classmethod
    def parse(cls, items: list[JsonObject], parse_tool: ParseTool) -> ToolSet:
        """Parse a list of tools and of namespaces with tools.

        Tools are deferred where their `defer_loading` says so. A hosted search is not here to find them: with one, all
        tools are in the prompt.
        """
        tool_set = cls(parse_tool)
        searched = any(str(item.get("type")).startswith(HOSTED_SEARCH) for item in items)
        for item in items:
            tool_set._add(item, may_defer=not searched)
        return tool_set

    @property
    def callable(self) -> list[Tool]:
        """All tools that may be called."""
        return [*self.tools, *self.deferred]

    def define(self, items: Iterable[JsonObject]) -> str:
        """Add tools that the conversation defines, and return their definitions as text. Nameless ones are dropped."""
        found = [tool for item in items for tool in self._add(item, deferred=True)]
        return "\n".join(map(_definition, found))

    def reference_text(self, reference: JsonObject) -> str:
        """The definition of the tool that a `tool_reference` or a `tool_definition` of Messages is about."""
        if definition := reference.object("definition"):
            return self.define([definition])
        name = reference.string("tool_name") or reference.string("name")
        found = next((tool for tool in self.callable if tool["function"]["name"] == name), None)
        return _definition(found) if found else f"[{name or 'unnamed'}: a tool that is not here]"

    def _add(
        self, item: JsonObject, namespace: str | None = None, *, may_defer: bool = True, deferred: bool = False
    ) -> list[Tool]:
        """Add a tool, or those of a namespace; return them."""
        if item.get("type") == "namespace":
            inner, name = item.objects("tools"), item.string("name")
            return [tool for one in inner for tool in self._add(one, name, may_defer=may_defer, deferred=deferred)]
        try:
            tool = self.parse_tool(item)
        except ApiError as error:
            if not deferred:
                raise
            self.dropped.append(str(error))  # a fault of the history ends no session
            return []
        if tool is None:
            self.dropped.append(f"tool {item.get('name') or item.get('type')}")
            return []
        function = tool["function"]
        name = function["name"]
        if (item.object("function") or item).get("strict") is True:  # arguments are checked, not forced; SDKs send it
            self.dropped.append(f"strict of tool {name}")
        if namespace:
            taken = {other["function"]["name"] for other in self.callable}
            function["name"] = f"{namespace}__{name}" if name in taken else name
            self.namespaces[function["name"]] = namespace, name
        if function["parameters"] is FREEFORM:
            self.freeform.add(function["name"])
        is_deferred = deferred or (may_defer and item.boolean("defer_loading") is True)
        (self.deferred if is_deferred else self.tools).append(tool)
        return [tool]


def function_tool(name: str, description: Any, parameters: Any) -> Tool:
    """A tool as chat templates take it."""
    function = {"name": name, "description": description or "", "parameters": parameters or {"type": "object"}}
    return {"type": "function", "function": function}


def parse_openai_tool(item: JsonObject) -> Tool | None:
    """A tool of Chat Completions or Responses; None: a hosted one."""
    kind = item.get("type")
    if kind not in ("function", "custom", None):
        return None
    function = item.object(kind or "function") or item
    name = function.string("name")
    if not name:
        function.reject("name", "the name of the function")
    description = function.string("description") or ""
    if kind == "custom":
        return function_tool(name, f"{description}\n\n{_input_format(function)}".strip(), FREEFORM)
    parameters = function.object("parameters")
    return function_tool(name, description, parameters and function.get("parameters"))


def freeform_arguments(text: Any) -> dict[str, Any]:
    """The arguments that stand for the text of a freeform call."""
    return {"input": text or ""}


def freeform_input(arguments: str) -> str:
    """The text of a freeform call; other arguments than one text are the text."""
    text = json.loads(arguments).get("input")
    return text if isinstance(text, str) else arguments


def _input_format(tool: JsonObject) -> str:
    """What the input of a freeform tool is, for its description."""
    wanted = tool.object("format")
    grammar = (wanted.object("grammar") or wanted) if wanted and wanted.string("type") == "grammar" else None
    if not grammar:
        return "The input is free text."
    return f"The input is text of this {grammar.string('syntax')} grammar:\n{grammar.string('definition')}"


def _definition(tool: Tool) -> str:
    return json.dumps(tool["function"], ensure_ascii=False)


def parse_openai_tool_choice(body: JsonObject, tools: list[Tool]) -> tuple[tuple[str, ...], str]:
    """`resolve_tool_choice` of the `tool_choice` of Chat Completions or Responses."""
    choice = body.get("tool_choice")
    if choice is None or isinstance(choice, str):
        if choice not in (None, "auto", "none", "required"):
            body.reject("tool_choice", "auto, none, required or a function")
        return resolve_tool_choice(tools, choice or "auto")
    fields = JsonObject(choice, "tool_choice")
    kind = fields.string("type")
    if kind in ("function", "custom"):
        return resolve_tool_choice(tools, "named", (fields.object(kind) or fields).string("name") or "")
    if kind != "allowed_tools":
        fields.reject("type", "function, custom or allowed_tools")
    holder = fields.object("allowed_tools") or fields
    named = [tool.object("function") or tool.object("custom") or tool for tool in holder.objects("tools")]
    allowed = [str(tool.get("name")) for tool in named]
    mode = holder.string("mode") or "auto"
    if mode not in ("auto", "required"):
        holder.reject("mode", "auto or required")
    return resolve_tool_choice(tools, mode, allowed=allowed)


def resolve_tool_choice(
    tools: list[Tool], choice: str, name: str | None = None, allowed: Iterable[str] | None = None
) -> tuple[tuple[str, ...], str]:
    """`callable_tools` and `tool_choice` of a `Request`. "required" with one tool becomes the name of that tool.

    Args:
        choice: "auto", "none", "required", or "named" with a `name`.
        name: the tool to call.
        allowed: names of the tools that may be called; None: all.

    Raises:
        ApiError: the choice asks for a tool that is not there.
    """
    names = tuple(dict.fromkeys(tool["function"]["name"] for tool in tools))
    if allowed is not None:
        allowed = set(allowed)
        names = tuple(each for each in names if each in allowed)
    if choice == "none":
        return (), "auto"
    if choice == "required":
        if not names:
            raise ApiError("tool_choice asks for a call, but there are no function tools", param="tool_choice")
        name = names[0] if len(names) == 1 else name
    if name is None:
        return names, choice
    if name not in names:
        raise ApiError(f"tool_choice names {name!r}, which is not among the tools", param="tool_choice")
    return (name,), name
