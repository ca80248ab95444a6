"""The tools of a request: parsed, chosen from, and checked against the arguments of a call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mlxmtp.server.body import JsonObject
from mlxmtp.server.errors import ApiError

Tool = dict[str, Any]
"""A function tool, as chat templates take it: {"type": "function", "function": {...}}."""
ParseTool = Callable[[JsonObject], Tool | None]
"""Parses one tool of a protocol; None: a hosted tool, which this server does not have."""

HAS_TYPE: dict[str, Callable[[Any], bool]] = {
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "integer": lambda value: HAS_TYPE["number"](value) and value == int(value),
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "null": lambda value: value is None,
}
"""The types of JSON Schema (json-schema.org, draft 2020-12, validation, 6.1.1): 3.0 is an integer."""


@dataclass(frozen=True)
class ToolSet:
    """The tools of a request.

    Args:
        tools: the function tools; those of namespaces are among them.
        dropped: tools and settings that this server ignores, for the log.
        namespaces: name in `tools` -> (namespace, name there).
    """

    tools: list[Tool] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    namespaces: dict[str, tuple[str, str]] = field(default_factory=dict)

    @classmethod
    def parse(cls, items: list[JsonObject], parse_tool: ParseTool) -> ToolSet:
        """Parse a list of tools and of namespaces with tools."""
        tool_set = cls()
        for item in items:
            if item.get("type") != "namespace":
                tool_set._add(item, parse_tool)
                continue
            for inner in item.objects("tools"):
                tool_set._add(inner, parse_tool, item.string("name"))
        return tool_set

    def _add(self, item: JsonObject, parse_tool: ParseTool, namespace: str | None = None) -> None:
        tool = parse_tool(item)
        if tool is None:
            self.dropped.append(f"tool {item.get('name') or item.get('type')}")
            return
        name = tool["function"]["name"]
        if (item.object("function") or item).get("strict") is True:  # arguments are checked, not forced; SDKs send it
            self.dropped.append(f"strict of tool {name}")
        if namespace:
            taken = {other["function"]["name"] for other in self.tools}
            tool["function"]["name"] = f"{namespace}__{name}" if name in taken else name
            self.namespaces[tool["function"]["name"]] = namespace, name
        self.tools.append(tool)


def function_tool(name: str, description: Any, parameters: Any) -> Tool:
    """A tool as chat templates take it."""
    function = {"name": name, "description": description or "", "parameters": parameters or {"type": "object"}}
    return {"type": "function", "function": function}


def parse_openai_tool(item: JsonObject) -> Tool | None:
    """A tool of Chat Completions or Responses; None: not a function."""
    if item.get("type") not in ("function", None):
        return None
    function = item.object("function") or item
    name = function.string("name")
    if not name:
        function.reject("name", "the name of the function")
    parameters = function.object("parameters")
    return function_tool(name, function.string("description"), parameters and function.get("parameters"))


def parse_openai_tool_choice(body: JsonObject, tools: list[Tool]) -> tuple[tuple[str, ...], str]:
    """`resolve_tool_choice` of the `tool_choice` of Chat Completions or Responses."""
    choice = body.get("tool_choice")
    if choice is None or isinstance(choice, str):
        if choice not in (None, "auto", "none", "required"):
            body.reject("tool_choice", "auto, none, required or a function")
        return resolve_tool_choice(tools, choice or "auto")
    fields = JsonObject(choice, "tool_choice")
    kind = fields.string("type")
    if kind == "function":
        return resolve_tool_choice(tools, "named", (fields.object("function") or fields).string("name") or "")
    if kind != "allowed_tools":
        fields.reject("type", "function or allowed_tools")
    holder = fields.object("allowed_tools") or fields
    allowed = [str((tool.object("function") or tool).get("name")) for tool in holder.objects("tools")]
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


def matches_schema(value: Any, schema: Any) -> bool:
    """Whether a JSON value has the types of a JSON schema. The rest of the schema is not checked.

    Null for an optional property counts as absent. An unknown type matches everything.
    """
    if not isinstance(schema, Mapping):
        return True
    types = schema.get("type")
    types = types if isinstance(types, list) else [] if types is None else [types]
    if types and not any(HAS_TYPE.get(str(name), lambda _: True)(value) for name in types):
        return value is None and schema.get("nullable") is True
    for keyword, combine in (("anyOf", any), ("oneOf", any), ("allOf", all)):
        schemas = schema.get(keyword)
        if isinstance(schemas, list) and schemas and not combine(matches_schema(value, inner) for inner in schemas):
            return False
    if isinstance(value, list):
        return all(matches_schema(item, schema.get("items")) for item in value)
    return not isinstance(value, dict) or _properties_match(value, schema)


def _properties_match(value: dict[str, Any], schema: Mapping[str, Any]) -> bool:
    properties, required = schema.get("properties"), schema.get("required")
    if not isinstance(properties, Mapping):
        return True
    required = required if isinstance(required, list) else []
    return all(
        (item is None and name not in required) or matches_schema(item, properties[name])
        for name, item in value.items()
        if name in properties
    )
