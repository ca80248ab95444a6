"""Bits on Apple's GPUs. Nothing of this had run on Metal when it was written.

What is expected was read in MLX 0.32.4. Where a machine differs, the test ends as an expected failure that says what
was found, and the workflow keeps it. What `strict` promises is asserted.

The same tests run on the CPU, but for the kernel's, so that they are known to run.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest

from mlxmtp import GenerationOptions, load
from mlxmtp.engine.store import own_kernels
from mlxmtp.exactness.few_rows import MAX_ROWS, few_row_matmul
from mlxmtp.exactness.greedy import greedy_run
from mlxmtp.exactness.probe import QUICK, ProbePlan, probe
from mlxmtp.machine import apple_gpu_generation
from mlxmtp.worker.messages import Generate, Load, Loaded, TurnDelta
from tests.conftest import REPO
from tests.exactness.conftest import engine, text  # noqa: F401 - a fixture
from tests.exactness.products import product
from tests.worker.driving import Driven, is_gone

METAL = pytest.param("gpu", marks=pytest.mark.metal)
on_both = pytest.mark.parametrize("device", ["cpu", METAL])
HEADS_PER_KEY = (2, 4, 6, 8, 12)
HEAD_DIMS = (64, 128, 256)
SHAPES = [(heads, dim) for heads in HEADS_PER_KEY for dim in HEAD_DIMS]
NEW = 15
"""Generation of M3: from it on, MLX multiplies several rows with other kernels than one."""
KINDS = ("next", "4-bit", "experts", "latent", "window")
DEPTH = 3
PLANS = {"gpu": QUICK, "cpu": ProbePlan((32,))}


def report(found: object, expected: object, what: str) -> None:
    """End as an expected failure where the machine is not as MLX's source was read."""
    if found != expected:
        pytest.xfail(f"{what}: read {expected}, found {found} (generation {apple_gpu_generation()})")


@pytest.mark.metal
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("bits", [4, 8])
def test_the_few_row_kernel_has_the_bits_of_one_row(bits: int, dtype: str) -> None:
    different = []
    for inputs in (256, 512, 768, 2048):
        for group in (32, 64, 128):
            case = product(inputs, 72, group, bits, getattr(mx, dtype))
            matrix = (case.w, case.scales, case.biases)
            options = {"group_size": group, "bits": bits}
            alone = [mx.quantized_matmul(case.x[row : row + 1], *matrix, **options) for row in range(MAX_ROWS)]
            for rows in range(2, MAX_ROWS + 1):
                few = few_row_matmul(case.x[:rows], *matrix, **options)
                if not mx.array_equal(few, mx.concatenate(alone[:rows])):
                    different.append((inputs, group, rows))
    report(different, [], f"few rows of {bits} bits in {dtype} (inputs, group, rows)")


def shapes(device: str) -> list[object]:
    """On the CPU one shape runs by default."""
    marks = [] if device == "cpu" else [pytest.mark.metal]
    rest = [pytest.mark.exhaustive] if device == "cpu" else []
    return [pytest.param(device, *one, marks=marks + (rest if one != SHAPES[4] else [])) for one in SHAPES]


@pytest.mark.parametrize(("device", "heads", "dim"), [*shapes("cpu"), *shapes("gpu")])
def test_the_probe_finds_what_was_read(
    raw_checkpoint: Callable[..., Path],
    mlx_conversion: Callable[..., Path],
    device: str,
    heads: int,
    dim: int,
) -> None:
    width, dtype = (512, "bfloat16") if device == "gpu" else (64, "float32")  # MLX's CPU is slow in bfloat16
    sizes = {"hidden": width, "mlp": width, "heads": heads, "kv_heads": 1, "head_dim": dim, "vocab": 64}
    raw = raw_checkpoint("qwen3_5", dtype=dtype, **sizes)
    folder = mlx_conversion(raw, bits=4, head_bits=4)
    strict = load(folder)
    kept = probe(strict.target, text(strict), "strict", PLANS[device], own_kernels())
    assert kept.identical, f"strict: {kept.because}"
    assert kept.num_tokens >= min(4, strict.target.max_fast_tokens)
    assert greedy_run(strict.target, strict.mtp, text(strict), min(DEPTH, kept.num_tokens - 1), 24).same
    fast = load(folder)
    guarantee = probe(fast.target, text(fast), "fast", PLANS[device])
    expected = "distribution" if device == "gpu" and apple_gpu_generation() >= NEW else "identical"
    report(guarantee.promise, expected, f"fast, {heads} heads a key, head dimension {dim}; {guarantee.because}")


@pytest.mark.parametrize(
    ("device", "kind"),
    [
        *(pytest.param("gpu", kind, marks=pytest.mark.metal) for kind in KINDS),
        *(pytest.param("cpu", kind, marks=[pytest.mark.exhaustive] * (kind != "window")) for kind in KINDS),
    ],
)
def test_replay_windows_and_latents_give_plain_decodings_tokens(
    engine: Callable[[str], object],  # noqa: F811
    device: str,
    kind: str,
) -> None:
    model = engine(kind)
    kept = probe(model.target, text(model), "strict", PLANS[device], own_kernels())
    assert kept.identical, kept.because
    run = greedy_run(model.target, model.mtp, text(model), min(DEPTH, kept.num_tokens - 1), 48)
    assert run.same, f"parts after {run.tokens} tokens"


@on_both
@pytest.mark.process
def test_a_worker_starts_answers_and_dies(device: str) -> None:
    with Driven() as worker:
        worker.send(Load, str(REPO / "tests" / "trained" / "glm4_moe"), device=device)
        assert worker.until(Loaded)
        worker.send(Generate, [5, 9, 3], GenerationOptions(max_tokens=1000))
        assert worker.until(TurnDelta)
        pid = worker.process.pid
        worker.process.kill()
    assert is_gone(pid)
