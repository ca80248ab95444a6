"""Looking into mlx-lm's models without forking them: one instance of a module gets a class of its own.

Python looks `__call__` up on the class, so swapping the class of an instance changes what a call does and leaves
the parameters and the module's place in the model as they are.
"""

from collections.abc import Callable
from types import FunctionType
from typing import Any

import mlx.core as mx
import mlx.nn as nn


class Tap:
    """What passed a module last, kept while `open`. References only: lazy until somebody evaluates them."""

    def __init__(self, *, open: bool) -> None:
        self.open = open
        self.input: mx.array | None = None
        self.output: mx.array | None = None

    def clear(self) -> None:
        self.input = self.output = None


def observe(module: nn.Module, *, open: bool = False) -> Tap:
    """A tap on one instance of a module with one input."""
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
    """Run one instance's own `__call__` with some global names bound to other functions."""
    call: Any = type(module).__call__
    scope = {**call.__globals__, **names}
    own = FunctionType(call.__code__, scope, call.__name__, call.__defaults__, call.__closure__)
    own.__kwdefaults__ = call.__kwdefaults__
    replace_call(module, own)


def replace_call(module: nn.Module, call: Callable[..., Any], method: str = "__call__") -> None:
    """Give one instance another `__call__`, or other method, a function whose first argument is the module."""
    kind = type(module)
    module.__class__ = type(kind.__name__, (kind,), {method: call})
