"""The types that a JSON schema permits, as far as its keywords say so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

ALL_TYPES = frozenset({"string", "integer", "number", "boolean", "object", "array", "null"})
"""The types of JSON. An integer is also a number."""
MAX_SCHEMAS = 100
"""Schemas that are read for one answer: references may multiply without an end. What lies beyond permits all types."""


def types_of(schema: Any, root: Any = None) -> frozenset[str]:
    """Return the types of the values that a schema permits; all, where it does not say.

    Args:
        root: the schema that `$ref` points into.
    """
    return _types(schema, root, iter(range(MAX_SCHEMAS)))


def _types(schema: Any, root: Any, left: Iterator[int]) -> frozenset[str]:
    if not isinstance(schema, Mapping) or next(left, None) is None:
        return ALL_TYPES
    schema = target_of(schema, root)
    types = ALL_TYPES
    if (wanted := schema.get("type")) is not None:
        names = [name for name in (wanted if isinstance(wanted, list) else [wanted]) if isinstance(name, str)]
        types &= {*names, *(["integer"] if "number" in names else [])}
    if (values := literals_of(schema)) is not None:
        types &= {kind for value in values for kind in types_of_value(value)}
    for choices in (schema.get("anyOf"), schema.get("oneOf")):
        if isinstance(choices, list):
            types &= frozenset[str]().union(*(_types(choice, root, left) for choice in choices))
    return types


def target_of(schema: Mapping[str, Any], root: Any) -> Mapping[str, Any]:
    """Return the definition of the root that a schema refers to, or the schema itself."""
    reference = schema.get("$ref")
    _, _, path = reference.partition("#/") if isinstance(reference, str) else ("", "", "")
    found = root
    for name in path.split("/") if path else ():
        found = found.get(name) if isinstance(found, Mapping) else None
    return {**found, **schema} if path and isinstance(found, Mapping) else schema


def literals_of(schema: Mapping[str, Any]) -> list[Any] | None:
    """Return the values that a schema lists; None: it lists none."""
    if "const" in schema:
        return [schema["const"]]
    values = schema.get("enum")
    return values if isinstance(values, list) else None


def types_of_value(value: Any) -> frozenset[str]:
    """Return the names of a value's type."""
    if isinstance(value, bool):
        return frozenset({"boolean"})
    names = {str: "string", int: "integer", float: "number", dict: "object", list: "array", type(None): "null"}
    name = names.get(type(value), "")
    return frozenset({name, "number"} if name == "integer" else {name})
