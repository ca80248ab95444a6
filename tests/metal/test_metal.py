"""Bits on Apple's GPUs. Nothing of this had run on Metal when it was written.

What is expected was read in MLX 0.32.4. Where a machine differs, the test ends as an expected failure that says what
was found, and the workflow keeps it. What `strict` promises is asserted.

The same tests run on the CPU, so that they are known to run.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlxmtp import Engine, GenerationOptions, load
from mlxmtp.decoding.sampling import Sampling, distribution, gumbel, log_probs
from mlxmtp.engine.store import own_kernels
from mlxmtp.exactness.few_rows import MAX_ROWS, few_row_matmul
from mlxmtp.exactness.greedy import greedy_run
from mlxmtp.exactness.probe import GPU_TOKENS, QUICK, ProbePlan, probe
from mlxmtp.limits import MAX_DEPTH
from mlxmtp.machine import apple_gpu
from mlxmtp.worker.messages import Generate, Load, Loaded, TurnDelta
from tests.conftest import REPO
from tests.exactness.conftest import engine, text  # noqa: F401 - a fixture
from tests.exactness.products import Product, built, product
from tests.exactness.stand_in import blocks
from tests.scripted import assert_same_state, snapshot
from tests.targets.test_rollback import one_by_one
from tests.worker.driving import Driven, is_gone

METAL = pytest.param("gpu", marks=pytest.mark.metal)
METAL_FUSED = [pytest.param(fused, "gpu", marks=pytest.mark.metal) for fused in (False, True)]
CPU = pytest.param("cpu", marks=pytest.mark.exhaustive)  # whether the tests themselves are right
on_both = pytest.mark.parametrize("device", [CPU, METAL])
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
        pytest.xfail(f"{what}: read {expected}, found {found} (GPU {apple_gpu()})")


@pytest.mark.parametrize(
    ("fused", "device"), [pytest.param(False, "cpu", marks=pytest.mark.exhaustive), (True, "cpu"), *METAL_FUSED]
)
def test_the_few_row_kernel_has_the_bits_of_one_row(
    tmp_path_factory: pytest.TempPathFactory, fused: bool, device: str
) -> None:
    """On the GPU those of MLX's product of one row; on the CPU the kernel's body runs on the host, for one row too."""
    host = None if device == "gpu" else built(tmp_path_factory)
    sizes = [(1056, 32), (256, 64)] if host else [(n, group) for n in (256, 512, 768, 2048) for group in (32, 64, 128)]
    dtypes = (mx.bfloat16,) if host else (mx.float16, mx.bfloat16, mx.float32)
    different = []
    for bits, dtype, (inputs, group) in itertools.product((4, 8), dtypes, sizes):
        case = product(inputs, 11 if host else 72, group, bits, dtype)
        matrix, options = (case.w, case.scales, case.biases), {"group_size": group, "bits": bits}

        def one_row(row: int, case: Product = case, matrix: Any = matrix, options: Any = options) -> mx.array:
            if host:
                return case.alone(host, row, fused=fused)
            return mx.quantized_matmul(case.x[row : row + 1], *matrix, **options)

        alone = [one_row(row) for row in range(MAX_ROWS)]
        for rows in range(2, MAX_ROWS + 1):
            few = few_row_matmul(case.x[:rows], *matrix, **options, launch=host, fused=fused)
            if not mx.array_equal(few, mx.concatenate(alone[:rows])):
                different.append((bits, str(dtype), inputs, group, rows))
    assert not (host and different), different
    report(different, [], f"few rows, fused: {fused} (bits, type, inputs, group, rows)")


@on_both
def test_what_is_drawn_does_not_depend_on_the_rows(device: str) -> None:
    """Seeded tokens are those of plain decoding where filters, noise and choice have the bits of one row, ties too."""
    vocabulary, rows, key = (248_320 if device == "gpu" else 40_000), 5, mx.random.key(7)
    logits = mx.random.normal((1, rows, vocabulary), key=key).astype(mx.bfloat16) * 3  # with many ties
    noise = gumbel(key, 100, rows, vocabulary)
    for sampling in (
        Sampling(0.7),
        Sampling(0.7, top_p=0.95),
        Sampling(0.7, top_k=20, top_p=0.95),
        Sampling(1, 1, 0, 0.05),
    ):
        several = distribution(logits, sampling)
        for row in range(rows):
            one = distribution(logits[:, row : row + 1], sampling)
            assert mx.array_equal(several.logs[:, row : row + 1], one.logs), (sampling, row)
            if one.tokens is not None and several.tokens is not None:
                assert mx.array_equal(several.tokens[:, row : row + 1], one.tokens), (sampling, row)
    assert mx.array_equal(noise, mx.concatenate([gumbel(key, 100 + row, 1, vocabulary) for row in range(rows)]))
    greedy = mx.argmax(log_probs(logits), axis=-1)
    alone = [mx.argmax(log_probs(logits[:, row : row + 1]), axis=-1) for row in range(rows)]
    assert mx.array_equal(greedy, mx.concatenate(alone, axis=1))


def longest_equal(model: Engine, heads: int) -> int:
    """The tokens up to which attention has the kernel of one row after each context; products of this size have it."""
    chip, limit, most = apple_gpu()[1], model.target.context or QUICK.contexts[-1], model.target.max_fast_tokens
    keys = [context + 8 for context in QUICK.contexts if context + 16 <= limit]
    same = [all(blocks(chip, m * heads, n) == blocks(chip, heads, n) for n in keys) for m in range(2, most + 1)]
    return 1 + len(list(itertools.takewhile(bool, same)))


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
    case = f"{heads} heads a key, head dimension {dim}"
    if device == "cpu":
        assert (guarantee.promise, guarantee.num_tokens) == ("identical", MAX_DEPTH + 1)
    elif apple_gpu()[0] < NEW:
        found = guarantee.promise, guarantee.num_tokens
        most = longest_equal(fast, heads)
        expected = ("identical", most) if most > 1 else ("distribution", GPU_TOKENS)
        report(found, expected, f"fast, {case}; {guarantee.because}")
    else:
        canonical = probe(fast.target, text(fast), "canonical", PLANS[device])
        found = guarantee.promise, canonical.promise, canonical.min_tokens
        report(found, ("distribution", "identical-canonical", 2), f"fast and canonical, {case}; {canonical.because}")


@pytest.mark.parametrize(
    ("device", "kind"),
    [
        *(pytest.param("gpu", kind, marks=pytest.mark.metal) for kind in KINDS),
        *(pytest.param("cpu", kind, marks=[pytest.mark.exhaustive] * (kind != "window")) for kind in KINDS),
    ],
)
def test_replay_windows_and_latents_leave_what_plain_decoding_leaves(
    engine: Callable[[str], Any],  # noqa: F811
    device: str,
    kind: str,
) -> None:
    model = engine(kind)
    kept = probe(model.target, text(model), "strict", PLANS[device], own_kernels())
    assert kept.identical, kept.because
    run = greedy_run(model.target, model.mtp, text(model), min(DEPTH, kept.num_tokens - 1), 48)
    assert run.same, f"parts after {run.tokens} tokens"
    tokens = text(model, DEPTH + 1)
    for length in (1, 20):  # a window is shorter than the second
        cache = model.target.make_cache()
        model.target.forward(mx.array([text(model, length)]), cache)
        states, logits = one_by_one(model.target, deepcopy(cache), tokens)
        for rows in range(2, min(len(tokens), kept.num_tokens) + 1):
            for rest in range(rows + 1):
                again = deepcopy(cache)
                opened = model.target.open(mx.array([tokens[:rows]]), again)
                assert mx.array_equal(opened.logits, mx.concatenate(logits[:rows], axis=1)), (length, rows)
                opened.commit(rest)
                assert_same_state(snapshot(again), states[rest], (length, rows, rest))


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


@on_both
@pytest.mark.parametrize("identity", ["fast", "strict"])
def test_turns_that_share_passes_have_the_tokens_that_each_has_alone(
    engine: Callable[[str], Engine],  # noqa: F811 - the fixture
    identity: str,
    device: str,
) -> None:
    """Wherever tokens are promised to be identical; the machine says up to how many rows."""
    model = engine("4-bit")
    model.identity = identity  # type: ignore[assignment]
    model.__dict__["guarantee"] = probe(model.target, text(model), model.identity, PLANS[device], own_kernels())
    guarantee = model.share_passes(3)
    assert guarantee.complete, guarantee.not_shared
    if guarantee.identical:
        prompts = [text(model, length) for length in (11, 17, 30)]
        options = GenerationOptions(max_tokens=16, depth=min(DEPTH, guarantee.num_tokens - 1))
        plain = [model.generate(one, replace(options, depth=0), raw=True).tokens for one in prompts]
        assert [one.tokens for one in model.batch(prompts, options, raw=True, parallel=3)] == plain, guarantee
