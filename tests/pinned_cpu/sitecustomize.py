"""Pins a process that a test starts to the CPU: Python imports this file first (`PYTHONPATH`, tests/conftest.py)."""

import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any


class Pin(MetaPathFinder):
    """Sets MLX's default device once MLX is imported."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path, target) if fullname == "mlx.core" else None
        if spec and spec.loader:
            execute = spec.loader.exec_module

            def execute_and_pin(module: Any) -> None:
                execute(module)
                module.set_default_device(module.cpu)

            spec.loader.exec_module = execute_and_pin  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, Pin())
