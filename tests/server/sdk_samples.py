"""A filled-in value for each content block and item that an SDK's types know, so that a new kind is tested at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin, get_type_hints

from typing_extensions import is_typeddict

DATA = "QUJDRA==" * 80
"""Encoded data, which must not get into a prompt."""
DATA_FIELDS = ("data", "file_data", "encrypted_content", "encrypted_index", "signature", "image_url")
MAX_LEVELS = 8


def samples(union: Any) -> dict[str, dict[str, Any]]:
    """A value of each typed dict of a union, by its type."""
    found = [_dict(one, 0) for one in _typed_dicts(union)]
    return {str(value["type"]): value for value in found}


def _typed_dicts(union: Any) -> Iterator[Any]:
    for one in get_args(union):
        if is_typeddict(one):
            yield one
        else:
            yield from _typed_dicts(one)


def _dict(kind: Any, level: int) -> dict[str, Any]:
    names = get_type_hints(kind)
    return {name: DATA if name in DATA_FIELDS else _value(hint, name, level + 1) for name, hint in names.items()}


def _value(hint: Any, name: str, level: int) -> Any:
    """A value of a type, with a word that names its field."""
    if is_typeddict(hint):
        return _dict(hint, level) if level < MAX_LEVELS else {}
    origin, arguments = get_origin(hint), [one for one in get_args(hint) if one is not type(None)]
    if origin is Literal:
        return arguments[0]
    if origin is dict:
        return {"field": "x"}
    if origin is not None and arguments and "Union" not in str(origin):  # a list or an iterable
        return [_value(arguments[0], name, level)]
    if arguments:
        return _value(arguments[0], name, level)
    simple = {str: f"the {name}", int: 1, float: 0.5, bool: True}
    return simple.get(hint, {"field": "x"})
