"""Reading a JSON body: every field that is used is checked, and refused by its name."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any

from mlxmtp.server.problems import ApiError


class Fields:
    """The fields of a JSON object; null counts as absent.

    Args:
        content: the object. at: its own place, for messages.

    Every method raises ApiError where a field is not what it should be.
    """

    def __init__(self, content: Any, at: str = "") -> None:
        if not isinstance(content, Mapping):
            raise ApiError(f"{at or 'the body'} is {shown(content)}; expected a JSON object", param=at or None)
        self._content = content
        self._at = at
        self._read: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return self.any(name) is not None

    @property
    def names(self) -> list[str]:
        return [str(name) for name in self._content]

    def any(self, name: str) -> Any:
        """The field as it is, or None."""
        self._read.add(name)
        return self._content.get(name)

    def unread(self, *harmless: str) -> list[str]:
        """The fields, but for harmless ones, that nothing has looked at so far: a few names, short, for the log."""
        known = self._read.union(harmless)
        return [str(name)[:40] for name, value in self._content.items() if value is not None and name not in known][:12]

    def number(self, name: str, low: float, high: float) -> float | None:
        value = self.any(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            self.refuse(name, f"a number from {low:g} to {high:g}")
        return float(value)

    def whole(self, name: str, low: int, high: int | None = None) -> int | None:
        value = self.any(name)
        if value is None:
            return None
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
            self.refuse(name, f"a whole number of at least {low}" if high is None else f"{low} to {high}")
        return int(value)

    def flag(self, name: str) -> bool | None:
        value = self.any(name)
        if value is not None and not isinstance(value, bool):
            self.refuse(name, "true or false")
        return value  # type: ignore[no-any-return]

    def text(self, name: str) -> str | None:
        value = self.any(name)
        if value is not None and not isinstance(value, str):
            self.refuse(name, "a string")
        return value  # type: ignore[no-any-return]

    def texts(self, name: str) -> list[str]:
        """A string or a list of strings."""
        value = self.any(name)
        value = [] if value is None else [value] if isinstance(value, str) else value
        if not isinstance(value, list) or not all(isinstance(one, str) and one for one in value):
            self.refuse(name, "a string or a list of strings, none of them empty")
        return list(value)

    def object(self, name: str) -> Fields | None:
        value = self.any(name)
        return None if value is None else Fields(value, self.at(name))

    def objects(self, name: str) -> list[Fields]:
        """A list of objects; absent: an empty one."""
        value = self.any(name)
        if value is not None and not isinstance(value, list):
            self.refuse(name, "a list of objects")
        return [Fields(one, f"{self.at(name)}[{i}]") for i, one in enumerate(value or [])]

    def at(self, name: str) -> str:
        """A field's place in the body."""
        return f"{self._at}.{name}" if self._at else name

    def refuse(self, name: str, expected: str) -> None:
        found = shown(self.any(name))
        raise ApiError(f"{self.at(name)} is {found}; expected {expected}", code="invalid_value", param=self.at(name))

    def refuse_unless(self, name: str, *neutral: Any) -> None:
        """Refuse a parameter that is not honoured here, unless it asks for nothing."""
        value = self.any(name)
        if value is not None and value not in neutral:
            raise ApiError(
                f"{self.at(name)} is {shown(value)}, which this server does not support; leave it out",
                code="unsupported_parameter",
                param=self.at(name),
            )


def shown(value: Any) -> str:
    """A value in a message, short."""
    text = reprlib.repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
