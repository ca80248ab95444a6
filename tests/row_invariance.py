"""Whether this machine's CPU gives each row of a pass the bits that it has alone, as Linux's does."""

import inspect
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from mlxmtp import load
from tests import tiny

DTYPES = ("float32", "bfloat16")
COMPARES = {
    "generate_step", "assert_same_state", "assert_plain", "assert_exact", "plain_run", "one_by_one", "sweep",
}  # fmt: skip
"""What a test names that compares bits or tokens with those of passes over one row."""
PLAIN = {"depth", "mtp"}
"""Arguments that have a turn decoded plainly, at 0 or False."""


@cache
def compares_rows(test: Callable[..., Any]) -> bool:
    """Return whether a test, or a function of the tests that it calls, compares with passes over one row."""
    waiting, seen = [test], set()
    while waiting:
        function = inspect.unwrap(waiting.pop())
        if inspect.isclass(function) and function.__module__.startswith("tests."):
            waiting += [method for method in vars(function).values() if inspect.isfunction(method)]
        if not inspect.isfunction(function) or function in seen or not function.__module__.startswith("tests."):
            continue
        seen.add(function)
        names = _names(function.__code__)
        if names & COMPARES or function.__module__.startswith("tests.exactness."):
            return True
        waiting += [function.__globals__[name] for name in names if name in function.__globals__]
    return False


def _names(code: Any) -> set[str]:
    """Return the names that a function uses, those of the functions inside it included."""
    own = {*code.co_names, *code.co_varnames[: code.co_argcount]}  # an argument may be a fixture of the module
    if 0 in code.co_consts and any(isinstance(names, tuple) and PLAIN & {*names} for names in code.co_consts):
        own |= COMPARES
    return own.union(*(_names(inner) for inner in code.co_consts if inspect.iscode(inner)))


@cache
def rows_differ() -> str:
    """Return why tests marked `exact` show nothing here; empty: they hold. Asked once a session, never on Linux.

    macOS multiplies by Accelerate, which may add several rows in another order than one. On Linux a difference is a
    bug, and no test is skipped for it.
    """
    return "" if sys.platform == "linux" else probed()


def probed() -> str:
    """Return what the probe finds different for tiny models on this device; empty: nothing."""
    with tempfile.TemporaryDirectory() as folder:
        for dtype in DTYPES:
            raw = tiny.raw_checkpoint(Path(folder) / dtype, "qwen3_5", dtype=dtype, vocab=16, layers=2, interval=2)
            for model in (raw, tiny.mlx_conversion(raw, Path(folder) / f"{dtype}-4-bit", bits=4, head_bits=4)):
                guarantee = load(model).guarantee
                if guarantee.promise != "identical":
                    return f"rows are not computed as one row is ({model.name}): {guarantee.because}"
    return ""
