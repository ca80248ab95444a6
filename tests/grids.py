"""Grids of test cases of which a few run by default and the others with the marker `exhaustive`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from itertools import product
from typing import Any

import pytest


def grid(*axes: Iterable[Any], default: Callable[..., bool]) -> list[Any]:
    """The product of the axes as parameters. Cases for which `default` is false are marked `exhaustive`."""
    return [pytest.param(*case, marks=_mark(default(*case))) for case in product(*axes)]


def cases(every: Iterable[Any], default: Collection[Any]) -> list[Any]:
    """Cases as parameters, tuples as several. Those that are not in `default` are marked `exhaustive`."""
    several = ((case, case if isinstance(case, tuple) else (case,)) for case in every)
    return [pytest.param(*values, marks=_mark(case in default)) for case, values in several]


def every_third(named: Mapping[str, tuple[Any, ...]]) -> list[Any]:
    """The values of a mapping as parameters; two of three are marked `exhaustive`."""
    return [pytest.param(*values, marks=_mark(i % 3 == 0)) for i, values in enumerate(named.values())]


def _mark(by_default: bool) -> tuple[pytest.MarkDecorator, ...]:
    return () if by_default else (pytest.mark.exhaustive,)
