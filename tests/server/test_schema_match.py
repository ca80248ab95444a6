"""`matches_schema`: whether arguments have the types of a tool's schema."""

from typing import Any

import pytest

from mlxmtp.server.tools import matches_schema

OPTIONAL = {"anyOf": [{"type": "string"}, {"type": "null"}]}


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"type": "string"}, ["", "a"], [7, True, None, [], {}]),
        ({"type": "integer"}, [0, -7, 3.0, 10**400], [0.5, "3", True, None]),
        ({"type": "number"}, [0, 0.5], ["3", False, None]),
        ({"type": "boolean"}, [True, False], [0, 1, "true", None]),
        ({"type": "null"}, [None], [0, "", False]),
        ({"type": "array", "items": {"type": "string"}}, [[], ["a"]], [["a", 1], "a", {}]),
        ({"type": ["string", "null"]}, ["a", None], [1, []]),
        ({"type": "string", "nullable": True}, ["a", None], [1, []]),
        (OPTIONAL, ["a", None], [1, []]),
        ({"oneOf": [{"type": "array", "items": OPTIONAL}, {"type": "integer"}]}, [["a", None], 2], [[1], "a"]),
        ({"allOf": [{"type": "object"}, {"properties": {"a": {"type": "string"}}}]}, [{}, {"a": ""}], [7, {"a": 7}]),
        ({"type": "date"}, ["2026-11-22", 7], []),
        ({}, [None, 7, {"a": [1]}], []),
        (True, [None, 7], []),
        ({"items": 7, "properties": 7, "anyOf": 7, "required": 7}, [[1], {"a": 1}], []),
    ],
)
def test_types(schema: Any, good: list[Any], bad: list[Any]) -> None:
    assert [value for value in good if not matches_schema(value, schema)] == []
    assert [value for value in bad if matches_schema(value, schema)] == []


def test_null_counts_as_absent_for_an_optional_property() -> None:
    schema = {"properties": {"a": {"type": "string"}, "b": {"type": "string"}}, "required": ["a"]}
    assert matches_schema({"a": "x", "b": None, "c": 7}, schema)
    assert not matches_schema({"a": None, "b": "x"}, schema)
    assert matches_schema({}, schema)  # a missing property is left to the tool
    deep = {"properties": {"list": {"items": {"properties": {"a": {"type": "integer"}}}}}}
    assert matches_schema({"list": [{"a": 1}, {"a": None}]}, deep)
    assert not matches_schema({"list": [{"a": 1}, {"a": "1"}]}, deep)
