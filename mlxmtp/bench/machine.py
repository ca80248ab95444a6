"""What a measurement was made on: the machine, the versions, the model."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

import mlxmtp
from mlxmtp.conversion.pull import machine_memory
from mlxmtp.engine.engine import Engine


def machine() -> dict[str, Any]:
    """Processor, memory and device, as plain values."""
    device = mx.default_device()
    return {
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_bytes": machine_memory(),
        "device": "gpu" if device == mx.Device(mx.gpu) else "cpu",
        "device_name": _device_name(),
    }


def versions(packages: Sequence[str] = ("mlx", "mlx-lm")) -> dict[str, str]:
    """Of Python, of mlxmtp, and of those of the packages that are installed; as it is, all that has a say in speed."""
    found = {"python": platform.python_version(), "mlxmtp": mlxmtp.__version__}
    for package in packages:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def model(engine: Engine) -> dict[str, Any]:
    """Which model, with which head."""
    source = engine.head_source
    quantization = engine.target.config.get("quantization") or {}
    return {
        "name": engine.name,
        "path": str(engine.path),
        "type": engine.target.model_type,
        "bytes": _nbytes(engine.target.model),
        "bits": quantization.get("bits"),
        "context": engine.context,
        "identity": engine.identity,
        "head": engine.head,
        "head_repo": source.repo if source else None,
        "draft_vocabulary": len(engine.draft_tokens) if engine.draft_tokens else None,
        "plain_because": engine.plain_because,
    }


def _nbytes(module: Any) -> int:
    weights: list[tuple[str, mx.array]] = tree_flatten(module.parameters())  # type: ignore[assignment]
    return sum(weight.nbytes for _, weight in weights)


def _device_name() -> str:
    with suppress(Exception):  # what a backend tells of its device differs, and it is only a name
        return str(mx.device_info().get("device_name", ""))
    return ""


def _processor() -> str:
    """The name that it is sold under, or its architecture."""
    with suppress(OSError, subprocess.SubprocessError):
        if sys.platform == "darwin":
            command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
            return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()
