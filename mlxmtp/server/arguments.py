"""Whether a call's arguments have the JSON types of its tool's schema; nothing else of the schema is looked at."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

IS: dict[str, Callable[[Any], bool]] = {
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "integer": lambda value: IS["number"](value) and value == int(value),
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "null": lambda value: value is None,
}
"""JSON Schema's types (json-schema.org, draft 2020-12, validation, 6.1.1): 3.0 is an integer."""


def fits(value: Any, schema: Any) -> bool:
    """Whether a finite JSON value has the types that its schema asks for.

    A null for a property that may be left out counts as left out, and a type that JSON has not fits everything.
    """
    if not isinstance(schema, Mapping):
        return True
    kinds = schema.get("type")
    kinds = kinds if isinstance(kinds, list) else [] if kinds is None else [kinds]
    if kinds and not any(IS.get(str(kind), lambda _: True)(value) for kind in kinds):
        return value is None and schema.get("nullable") is True
    for several, enough in (("anyOf", any), ("oneOf", any), ("allOf", all)):
        inner = schema.get(several)
        if isinstance(inner, list) and inner and not enough(fits(value, one) for one in inner):
            return False
    if isinstance(value, list):
        return all(fits(one, schema.get("items")) for one in value)
    return not isinstance(value, dict) or _properties_fit(value, schema)


def _properties_fit(value: dict[str, Any], schema: Mapping[str, Any]) -> bool:
    known, required = schema.get("properties"), schema.get("required")
    if not isinstance(known, Mapping):
        return True
    needed = required if isinstance(required, list) else []
    return all(
        (one is None and name not in needed) or fits(one, known[name]) for name, one in value.items() if name in known
    )
