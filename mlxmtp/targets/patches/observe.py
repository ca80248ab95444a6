"""Change what one module of mlx-lm's models does, without a fork: the instance gets a class of its own.

Python looks `__call__` up on the class. A new class changes the call, and leaves the parameters and the module's place
in the model as they are.
"""

from collections.abc import Callable
from types import FunctionType
from typing import Any

import mlx.core as mx
import mlx.nn as nn


class Tap:
    """Input and output of a module's last call while `open`; references to lazy arrays, which are not evaluated."""

    def __init__(self, *, open: bool) -> None:
        self.open = open
        self.input: mx.array | None = None
        self.output: mx.array | None = None

    def clear(self) -> None:
        self.input = self.output = None


def observe(module: nn.Module, *, open: bool = False) -> Tap:
    """Return a tap on one instance of a module with one input."""
    tap = Tap(open=open)
    kind: Any = type(module)

    def call(self: nn.Module, x: mx.array) -> mx.array:
        y: mx.array = kind.__call__(self, x)
        if tap.open:
            tap.input, tap.output = x, y
        return y

    replace_call(module, call)
    return tap


def rebind(module: nn.Module, **names: Callable[..., Any]) -> None:
    """Bind global names inside one instance's `__call__` to other functions."""
    call: Any = type(module).__call__
    scope = {**call.__globals__, **names}
    own = FunctionType(call.__code__, scope, call.__name__, call.__defaults__, call.__closure__)
    own.__kwdefaults__ = call.__kwdefaults__
    replace_call(module, own)


def replace_call(module: nn.Module, call: Callable[..., Any], method: str = "__call__") -> None:
    """Replace `__call__`, or another method, of one instance; the first argument of `call` is the module."""
    kind = type(module)
    module.__class__ = type(kind.__name__, (kind,), {method: call})
