"""Change what one module of mlx-lm's models does, without a fork: the instance gets a class of its own.

Python looks `__call__` up on the class. A new class changes the call, and leaves the parameters and the module's place
in the model as they are.
"""

import inspect
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
    """Bind global names inside one instance's methods, and inside what wraps them, to other functions."""
    for method, outermost in _outermost(module).items():
        outer, call = None, outermost
        while inner := getattr(call, "__wrapped__", None):
            outer, call = call, inner
        if names.keys() & call.__code__.co_names:
            scope = {**call.__globals__, **names}
            own = FunctionType(call.__code__, scope, call.__name__, call.__defaults__, call.__closure__)
            own.__kwdefaults__ = call.__kwdefaults__
            if outer is None:
                replace_call(module, own, method)
            else:
                outer.__wrapped__ = own  # type: ignore[attr-defined]


def uses(module: nn.Module, name: str) -> bool:
    """Return whether one of a module's methods names a global or an attribute `name`."""
    return any(name in call.__code__.co_names for call in methods(module).values())


def methods(module: nn.Module) -> dict[str, FunctionType]:
    """Return the methods that a module's classes define below `nn.Module`, by name, without what wraps them."""
    return {name: inspect.unwrap(call) for name, call in _outermost(module).items()}


def _outermost(module: nn.Module) -> dict[str, FunctionType]:
    kinds = [kind for kind in reversed(type(module).__mro__) if issubclass(kind, nn.Module) and kind is not nn.Module]
    return {name: call for kind in kinds for name, call in vars(kind).items() if isinstance(call, FunctionType)}


def wrap_call(module: nn.Module, wrapper: Callable[..., Any]) -> None:
    """Have `wrapper(call, module, ...)` run in place of one instance's `__call__`; `rebind` reaches `call`."""

    def outer(module: nn.Module, *args: Any, **options: Any) -> Any:
        return wrapper(outer.__wrapped__, module, *args, **options)  # type: ignore[attr-defined]

    outer.__wrapped__ = type(module).__call__  # type: ignore[attr-defined]
    replace_call(module, outer)


def replace_call(module: nn.Module, call: Callable[..., Any], method: str = "__call__") -> None:
    """Replace `__call__`, or another method, of one instance; the first argument of `call` is the module."""
    kind = type(module)
    module.__class__ = type(kind.__name__, (kind,), {method: call})
