"""Facts of this machine: memory, versions, processor, device. MLX is imported by the functions that need it."""

from __future__ import annotations

import os
import platform
import re
import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mlxmtp.errors import BackendError, OptionError
from mlxmtp.limits import DEVICES, Device
from mlxmtp.units import size
from mlxmtp.version import __version__

USABLE_FRACTION = 2 / 3 if sys.platform == "darwin" else 0.75
"""The part of the memory that weights and caches may take where no driver recommends an amount."""
FULL_FRACTION = 0.9
"""The part of the usable memory from which a model is said to be slow, as in mlx-lm."""
MIN_FILES = 2048
"""Open files that mlx-lm wants for checkpoints of many shards."""
GPU_SWITCH = "MLX_METAL_GPU_ARCH"
"""MLX's variable of the environment that names the GPU for which it chooses kernels."""
_APPLE_GPU = re.compile(r"applegpu_g(\d\d)([a-z])")
"""A GPU's architecture: generation, and the class of the chip (g: base, s: Max, d: Ultra)."""
MIN_MACOS = 14
"""The oldest macOS that MLX's wheels run on."""
_NO_VERSION = 10
"""What a Python built for an older macOS is told in place of the version, as 10.16."""
SHARED_INFO = (
    "architecture",
    "device_name",
    "max_buffer_length",
    "max_recommended_working_set_size",
    "memory_size",
    "total_memory",
    "compute_capability_major",
    "compute_capability_minor",
)
"""What is reported of MLX's `device_info`: no serial number, no place on a bus, nothing that differs between runs."""
_HOW_TO_GET_MLX = (
    "install it with pip install mlx, on Apple silicon"
    if sys.platform == "darwin"
    else "on Linux its backend comes with an extra: pip install 'mlxmtp[cpu]', "
    "or with an NVIDIA GPU 'mlxmtp[cuda12]' or 'mlxmtp[cuda13]'"
)


def import_backend() -> None:
    """Import MLX.

    On Linux the `mlx` wheel holds no backend; its import ends in "libmlx.so: cannot open shared object file".

    Raises:
        BackendError: MLX, or its library, is not installed; the message says what to install.
    """
    try:
        import_module("mlx.core")
    except ImportError as error:
        raise missing_backend(error) from error


def missing_backend(error: ImportError) -> ImportError:
    """Return the `BackendError` that says what to install if MLX could not be imported; else the error as it is."""
    if error.name not in ("mlx", "mlx.core") and "libmlx" not in str(error):
        return error
    how = system_fault() or _HOW_TO_GET_MLX
    return BackendError(f"MLX cannot be imported ({error}); {how}")


def system_fault() -> str:
    """Return what MLX needs of a Mac and this one lacks, in words; empty: nothing."""
    release, architecture = platform.mac_ver()[0], platform.machine()
    if not release:
        return ""
    major = int(release.partition(".")[0])
    if _NO_VERSION < major < MIN_MACOS or architecture != "arm64":
        found = f"found macOS {release}, {architecture}"
        return f"MLX needs macOS {MIN_MACOS} or later and a Python for arm64; {found}"
    return ""


def use_device(device: Device | None) -> None:
    """Have MLX compute on a device from now on, in every thread of this process. None: leave it as it is.

    Call it before the arrays are made that the device is to work on.

    Raises:
        OptionError: there is no such device, or this machine lacks it.
    """
    if device is None:
        return
    if device not in DEVICES:
        raise OptionError(f"device is {device!r}; expected one of {', '.join(DEVICES)}")
    import mlx.core as mx

    kind = mx.gpu if device == "gpu" else mx.cpu
    if not mx.device_count(kind):
        raise OptionError(f"MLX finds no {device} on this machine; leave out --device {device}")
    mx.set_default_device(kind)


class FileLimit(MetaPathFinder):
    """Keeps the limit of open files when mlx-lm is imported, which sets it to 2,048 of at most 4,096 for ever.

    Where the limit is lower, it is raised as far as allowed: large models have many files.
    """

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path, target) if fullname == "mlx_lm.utils" else None
        if spec and spec.loader:
            spec.loader.exec_module = partial(self._run, spec.loader.exec_module)  # type: ignore[method-assign]
        return spec

    def _run(self, exec_module: Callable[[Any], None], module: Any) -> None:
        set_limit = resource.setrlimit
        resource.setrlimit = lambda *_: None
        try:
            exec_module(module)
        finally:
            resource.setrlimit = set_limit
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        soft, hard = (float("inf") if limit == resource.RLIM_INFINITY else limit for limit in limits)
        if soft < MIN_FILES:
            with suppress(OSError, ValueError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (int(min(MIN_FILES, hard)), limits[1]))


def memory_bytes() -> int:
    """Return the bytes of physical memory; those of the CUDA GPU, if MLX is imported and computes there."""
    if (mx := sys.modules.get("mlx.core")) and mx.default_device() == mx.Device(mx.gpu) and not mx.metal.is_available():
        return int(mx.device_info(mx.default_device())["total_memory"])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def usable_memory() -> int:
    """Return the bytes that weights and caches may take: what Metal recommends, if MLX is imported and runs on it."""
    mx: Any = sys.modules.get("mlx.core")
    info = mx.device_info(mx.default_device()) if mx else {}
    return int(info.get("max_recommended_working_set_size") or USABLE_FRACTION * memory_bytes())


def memory_warning(weight_bytes: int) -> str | None:
    """Return the warning if a loaded model leaves little of the usable memory, or None."""
    usable = usable_memory()
    if weight_bytes <= FULL_FRACTION * usable:
        return None
    return f"the model takes {size(weight_bytes)} of the {size(usable)} that it can use here; it can be slow"


def versions(packages: Sequence[str] = ("mlx", "mlx-lm")) -> dict[str, str]:
    """Return the versions of Python, of mlxmtp, and of those `packages` that are installed."""
    found = {"python": platform.python_version(), "mlxmtp": __version__}
    for package in packages:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def hardware() -> dict[str, Any]:
    """Return system, processor, cores, memory and MLX's device, as plain values for a report."""
    import mlx.core as mx

    return {
        "system": platform.platform(),
        "processor": _processor_name(),
        "cores": os.cpu_count(),
        "memory_bytes": memory_bytes(),
        "device": "gpu" if mx.default_device() == mx.Device(mx.gpu) else "cpu",
        "device_name": _device_name(),
    }


def backend() -> dict[str, Any]:
    """Return what MLX says of its device, and which GPU backends are available."""
    import mlx.core as mx

    info = mx.device_info(mx.default_device())
    cuda: Any = getattr(mx, "cuda", None)
    return {
        "wired_limit_bytes": info.get("max_recommended_working_set_size"),
        "device_info": {name: info[name] for name in SHARED_INFO if name in info},
        "switches": switches(),
        "metal": mx.metal.is_available(),
        "cuda": bool(cuda and cuda.is_available()),
    }


def kernel_facts() -> dict[str, Any]:
    """Return what decides which kernels MLX runs: the system, the device, and the switches of its environment.

    The facts are equal from run to run, so that they can be part of a cache key: free memory is not among them.
    """
    import mlx.core as mx

    device = mx.device_info(mx.default_device())
    return {
        "system": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "device": str(mx.default_device()),
        "device_info": {name: value for name, value in device.items() if isinstance(value, str)},
        "switches": switches(),
    }


def switches() -> dict[str, str]:
    """Return the switches of MLX's environment, some of which choose kernels."""
    return {name: value for name, value in os.environ.items() if name.startswith("MLX_")}


def on_metal() -> bool:
    """Return whether MLX computes on an Apple GPU."""
    import mlx.core as mx

    return mx.default_device() == mx.Device(mx.gpu) and bool(mx.metal.is_available())


def apple_gpu() -> tuple[int, str]:
    """Return generation and class of the Apple GPU for which MLX chooses its kernels; (0, ""): not known.

    13 is M1, 14 M2, 15 M3, 16 M4; "s" is Max, "d" Ultra. MLX's own switch names another GPU than there is.
    """
    import mlx.core as mx

    name = os.environ.get(GPU_SWITCH) or mx.device_info().get("architecture", "")
    found = _APPLE_GPU.fullmatch(str(name))
    return (int(found[1]), found[2]) if found else (0, "")


def older_gpu_name() -> str:
    """Return the name for `GPU_SWITCH` by which an M3 or M4 gets an M1's kernels; empty: another GPU, or it is set.

    The letter, the class of the chip, is kept. M5 has kernels of its own for prompts.
    """
    import mlx.core as mx

    if not on_metal() or GPU_SWITCH in os.environ:
        return ""
    found = _APPLE_GPU.fullmatch(str(mx.device_info().get("architecture", "")))
    return f"applegpu_g13{found[2]}" if found and int(found[1]) in (15, 16) else ""


def platform_facts() -> dict[str, str]:
    """Return the system and the processor's name, without MLX."""
    return {"system": platform.platform(), "processor": _processor_name()}


def _device_name() -> str:
    import mlx.core as mx

    with suppress(Exception):  # backends differ in what they report, and this is only a name
        return str(mx.device_info().get("device_name", ""))
    return ""


def _processor_name() -> str:
    """Return the processor's product name, or else its architecture."""
    with suppress(OSError, subprocess.SubprocessError):
        if sys.platform == "darwin":
            command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
            return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()
