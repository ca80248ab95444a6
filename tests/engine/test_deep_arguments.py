"""Tool calls whose arguments a model nests without end."""

from types import SimpleNamespace
from typing import Any

from mlxmtp.engine.output import parse_tool_calls

DEEP = "[" * 100_000


def call(arguments: dict[str, Any]) -> list[dict[str, Any]] | None:
    tools = [{"function": {"name": "f", "parameters": {"properties": {"a": {"type": "array"}}}}}]
    tokenizer = SimpleNamespace(tool_parser=lambda text, tools: {"name": "f", "arguments": arguments})
    return parse_tool_calls(tokenizer, "", tools)


def test_a_text_that_is_no_value_stays_a_text() -> None:
    for text in (DEEP, "[" * 500 + "]" * 500, "[1"):
        assert call({"a": text}) == [{"name": "f", "arguments": {"a": text}}], text[:9]
    assert call({"a": "[1]"}) == [{"name": "f", "arguments": {"a": [1]}}]


def test_arguments_too_deep_to_walk_through_are_no_call() -> None:
    deep: list[Any] = []
    for _ in range(500):
        deep = [deep]
    assert call({"a": deep}) is None
