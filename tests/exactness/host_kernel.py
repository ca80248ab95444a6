"""The body of the Metal kernel, compiled for this machine (host_kernel.cpp), in place of `mx.fast.metal_kernel`'s."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

BODY = Path(__file__).parents[2] / "mlxmtp" / "exactness" / "few_rows.metal"
HARNESS = Path(__file__).with_name("host_kernel.cpp")
TYPES = {mx.float16: 0, mx.bfloat16: 1, mx.float32: 2}


def compiler() -> str | None:
    return next((found for name in ("g++", "clang++", "c++") if (found := shutil.which(name))), None)


@dataclass
class HostKernel:
    """Called as the Metal kernel is.

    Args:
        reads: how many words of the weights the last call read.
    """

    library: ctypes.CDLL
    reads: int = 0

    @classmethod
    def build(cls, folder: Path, body: str | None = None) -> HostKernel:
        """Compile the harness with the kernel's body, or with another text in its place."""
        source, library = folder / "body.metal", folder / "few_rows.so"
        source.write_text(BODY.read_text("utf-8") if body is None else body, "utf-8")
        # no product fused with a sum: the reference in numpy fuses none
        flags = ["-std=c++17", "-O1", "-shared", "-fPIC", "-ffp-contract=off", "-Wno-unknown-pragmas"]
        run = [compiler() or "c++", *flags, f'-DBODY="{source}"', str(HARNESS), "-o", str(library)]
        done = subprocess.run(run, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return cls(ctypes.CDLL(str(library)))

    def __call__(
        self,
        *,
        inputs: list[mx.array],
        template: list[tuple[str, Any]],
        grid: tuple[int, int, int],
        threadgroup: tuple[int, int, int],
        output_shapes: list[tuple[int, int]],
        output_dtypes: list[mx.Dtype],
    ) -> list[mx.array]:
        named = dict(template)
        ((rows, outputs),), (dtype,) = output_shapes, output_dtypes
        assert grid[0] == threadgroup[0] == 32, "a SIMD-group is one row of the grid"
        assert grid[1] % threadgroup[1] == 0
        assert grid[2] == threadgroup[2] == 1
        assert dtype == named["T"] == inputs[0].dtype == inputs[2].dtype == inputs[3].dtype
        assert inputs[0].shape[0] == named["ROWS"] == rows
        x, w, scales, biases = (as_bits(array) for array in inputs)
        y = np.full((rows, outputs), -1, x.dtype)  # a not-a-number where nothing is written
        parameters = [int(named[name]) for name in ("OUTPUTS", "BITS", "GROUP", "LANE", "FUSED")]
        sizes = [grid[1], inputs[0].shape[1], outputs]
        pointers = [ctypes.c_void_p(array.ctypes.data) for array in (x, w, scales, biases, y)]
        self.library.few_rows.restype = ctypes.c_long
        self.reads = self.library.few_rows(TYPES[dtype], rows, *parameters, *sizes, *pointers)
        assert self.reads >= 0, {-1: "no such kernel in the harness", -2: "the body went astray"}[self.reads]
        return [mx.array(y.view(np.uint32 if dtype == mx.float32 else np.uint16)).view(dtype)]


def as_bits(array: mx.array) -> np.ndarray:
    """The array's bits, as integers of its width, signed but for packed weights."""
    if array.dtype == mx.uint32:
        return np.ascontiguousarray(np.array(array))
    return np.ascontiguousarray(np.array(array.view(mx.int32 if array.dtype == mx.float32 else mx.int16)))
