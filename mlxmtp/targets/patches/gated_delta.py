"""Gated-delta layers (Qwen3-Next, Qwen3.5) whose state can go back to any row of the last pass.

The state after n of m rows costs no second pass through the weights. The recurrence runs row by row, and every row's
state is kept; where one kernel of a GPU runs all rows, its inputs are kept, and it runs again over the first n.
The convolution's state after n rows is a slice of the convolution's input.
Source: Gated Delta Networks (Yang et al. 2412.06464); mlx-lm's `models.gated_delta`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models import gated_delta
from mlx_lm.models.cache import ArraysCache

from mlxmtp.targets.patches.observe import observe, rebind, uses

TRIAL_ROWS = 5
"""Rows of the pass on which MLX's own kernel is tried."""
TRIAL_ERROR = 1e-4
"""Largest difference from mlx-lm's operations, in parts of the largest value; both add in float32."""
Update = Callable[..., tuple[mx.array, mx.array]]
"""A recurrence with the arguments of mlx-lm's `gated_delta_update`; returns outputs and the last state."""
RecurrentState = tuple[mx.array | None, mx.array | None]
"""A layer's cache: the last inputs of the convolution [B, K - 1, C], the recurrent state [B, Hv, Dv, Dk]."""


@dataclass(frozen=True)
class RecurrentRows:
    """What rolls one layer back to any row of one pass.

    Args:
        before: its state before the pass.
        conv_input: [B, K - 1 + m, C], the inputs of the convolution; the first K - 1 are from before the pass.
        state_after: returns the recurrent state after n rows, 0 < n < m; None for a pass of one row.
    """

    before: RecurrentState
    conv_input: mx.array
    state_after: Callable[[int], mx.array] | None

    def commit(self, cache: ArraysCache, rows: int, of: int) -> None:
        """Set `cache` to its state after the first `rows` of the pass's `of` rows."""
        if rows == 0:
            cache[0], cache[1] = self.before
        elif rows < of:
            assert self.state_after is not None
            width = self.conv_input.shape[1] - of
            cache[0] = mx.contiguous(self.conv_input[:, rows : rows + width])
            cache[1] = self.state_after(rows)


def is_gated_delta(layer: Any) -> bool:
    """Return whether a layer is mlx-lm's gated delta with one convolution over queries, keys and values."""
    return hasattr(layer, "conv1d") and uses(layer, gated_delta.gated_delta_update.__name__)


class RecurrentLayer:
    """One gated-delta layer of mlx-lm that keeps what a rollback needs, between `begin_pass` and `end_pass`."""

    def __init__(self, layer: nn.Module) -> None:
        self._conv = observe(layer.conv1d)
        self._state_after: Callable[[int], mx.array] | None = None
        rebind(layer, gated_delta_update=self._update)

    def begin_pass(self, num_tokens: int, num_sequences: int) -> None:  # noqa: ARG002
        """Begin to keep the states of rows; a prefill, which is not announced, keeps none."""
        self._conv.open = True

    def end_pass(self) -> None:
        self._conv.open = False

    def take(self, before: Sequence[RecurrentState]) -> list[RecurrentRows]:
        """Return what rolls back each sequence of the pass that was just built, which began at `before`."""
        inputs, after = self._conv.input, self._state_after
        assert inputs is not None
        self._conv.clear()
        self._state_after = None
        if len(before) == 1:
            return [RecurrentRows(before[0], inputs, after)]
        own = [None if after is None else partial(_state_of_sequence, after, b) for b in range(len(before))]
        return [RecurrentRows(state, inputs[b : b + 1], own[b]) for b, state in enumerate(before)]

    def _update(
        self, q: mx.array, k: mx.array, v: mx.array, a: mx.array, b: mx.array, *rest: Any, **options: Any
    ) -> tuple[mx.array, mx.array]:
        """Run mlx-lm's `gated_delta_update`: q, k [B, T, Hk, Dk], v [B, T, Hv, Dv], a, b [B, T, Hv]."""
        rows, one_kernel = (q, k, v, a, b), kernel_for_all_rows(k.shape[2:], v.shape[2:])
        update: Update = one_kernel or gated_delta.gated_delta_update
        if self._conv.open and q.shape[1] > 1:
            if not one_kernel:
                return self._row_by_row(*rows, *rest[:3])
            self._state_after = lambda n: update(*(x[:, :n] for x in rows), *rest, **options)[1]
        return update(*rows, *rest, **options)

    def _row_by_row(
        self,
        q: mx.array,
        k: mx.array,
        v: mx.array,
        a: mx.array,
        b: mx.array,
        a_log: mx.array,
        dt_bias: mx.array,
        state: mx.array | None,
    ) -> tuple[mx.array, mx.array]:
        """Do the operations of mlx-lm's `gated_delta_ops`, with the same bits, and keep the state of every row."""
        groups = v.shape[2] // k.shape[2]
        if groups > 1:
            q, k = mx.repeat(q, groups, -2), mx.repeat(k, groups, -2)
        beta, g = mx.sigmoid(b), gated_delta.compute_g(a_log, a, dt_bias)
        if state is None:
            state = mx.zeros((q.shape[0], *v.shape[2:], k.shape[-1]), dtype=mx.float32)
        outputs, states = [], [state]
        for t in range(q.shape[1]):
            y, state = gated_delta._gated_delta_step_ops(q[:, t], k[:, t], v[:, t], g[:, t], beta[:, t], state)
            outputs.append(y)
            states.append(state)
        self._state_after = states.__getitem__
        return mx.stack(outputs, axis=1), state


def _state_of_sequence(state_after: Callable[[int], mx.array], b: int, rows: int) -> mx.array:
    return state_after(rows)[b : b + 1]


# -- one kernel for all rows of a pass ------------------------------------------------------------------------


def kernel_for_all_rows(keys: tuple[int, ...], values: tuple[int, ...]) -> Update | None:
    """Return the recurrence that runs all rows of a pass in one kernel; None: this device has none that is right.

    Args:
        keys, values: heads and their dimension.
    """
    if mx.default_device() != mx.gpu:
        return None
    if mx.metal.is_available():
        return gated_delta.gated_delta_update
    return mlx_update if mlx_agrees(keys, values) else None


def mlx_update(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    a: mx.array,
    b: mx.array,
    a_log: mx.array,
    dt_bias: mx.array,
    state: mx.array | None = None,
    mask: mx.array | None = None,
    **options: Any,
) -> tuple[mx.array, mx.array]:
    """Run MLX's own `gated_delta_update`, for CUDA, where mlx-lm has operations alone.

    In float32, as those: with inputs in bfloat16 it rounds the decay too.
    """
    if mask is not None or options.keys() - {"use_kernel"}:
        return gated_delta.gated_delta_update(q, k, v, a, b, a_log, dt_bias, state, mask, **options)
    if state is None:
        state = mx.zeros((q.shape[0], *v.shape[2:], k.shape[-1]), dtype=mx.float32)
    inputs = (q, k, v, gated_delta.compute_g(a_log, a, dt_bias), mx.sigmoid(b))
    fused: Callable[..., list[mx.array]] = mx.fast.gated_delta_update
    y, last_state = fused(*(x.astype(mx.float32) for x in inputs), state)
    return y.astype(q.dtype), last_state


@cache
def mlx_agrees(keys: tuple[int, ...], values: tuple[int, ...]) -> bool:
    """Return whether `mlx_update` is right here: close to mlx-lm's operations, and the same row by row, bit for bit."""
    if not hasattr(mx.fast, "gated_delta_update"):
        return False
    shapes = (keys, keys, values, values[:1], values[:1])
    q, k, v, a, b, a_log, dt_bias = (
        mx.random.normal(shape, key=mx.random.key(i))
        for i, shape in enumerate([(1, TRIAL_ROWS, *one) for one in shapes] + 2 * [values[:1]])
    )
    rows, rest = (q, k / mx.linalg.norm(k, axis=-1, keepdims=True), v, a, b), (a_log, dt_bias)
    update: Update = mlx_update
    outputs, state = [], mx.zeros((1, *values, keys[1]))
    try:
        for t in range(TRIAL_ROWS):
            y, state = update(*(x[:, t : t + 1] for x in rows), *rest, state)
            outputs.append(y)
        by_rows = mx.concatenate(outputs, axis=1), state
        results = zip(update(*rows, *rest), by_rows, gated_delta.gated_delta_update(*rows, *rest), strict=True)
        return all(mx.array_equal(one, other) and _close(one, right) for one, other, right in results)
    except (RuntimeError, ValueError):  # this backend of MLX has no such kernel, or none for these sizes
        return False


def _close(found: mx.array, expected: mx.array) -> bool:
    return bool(mx.abs(found - expected).max() <= TRIAL_ERROR * mx.abs(expected).max())
