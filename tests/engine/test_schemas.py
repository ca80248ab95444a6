"""The types that a schema permits, whatever the schema looks like."""

from typing import Any

from mlxmtp.engine.schemas import ALL_TYPES, types_of

ROOT: dict[str, Any] = {
    "$defs": {
        "count": {"type": "integer"},
        "self": {"$ref": "#/$defs/self"},
        "many": {"anyOf": [{"$ref": "#/$defs/many"}] * 50},
    }
}


def test_types_of_any_schema() -> None:
    cases: tuple[tuple[Any, set[str]], ...] = (
        ({"type": "number"}, {"number", "integer"}),
        ({"type": ["string", "null"]}, {"string", "null"}),
        ({"type": "string", "anyOf": [{"enum": ["a", 1]}]}, {"string"}),
        ({"const": True}, {"boolean"}),
        ({"oneOf": [{"$ref": "#/$defs/count"}, {"const": None}]}, {"integer", "null"}),
        ({"type": "unheard"}, set()),
    )
    for schema, types in cases:
        assert types_of(schema, ROOT) == types, schema
    free = (
        {},
        True,
        None,
        {"anyOf": 5},
        {"enum": "a"},
        {"$ref": 5},
        {"$ref": "#/$defs/none"},
        {"$ref": "#/$defs/self"},
    )
    for schema in free:
        assert types_of(schema, ROOT) == ALL_TYPES, schema
    assert types_of({"$ref": "#/$defs/many"}, ROOT) == ALL_TYPES, "it ends"
