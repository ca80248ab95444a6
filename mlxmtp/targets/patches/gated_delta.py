"""Gated-delta layers (Qwen3-Next, Qwen3.5) whose state can go back to any row of the last pass.

The state after n of m rows costs no second pass through the weights. The recurrence runs row by row, and every row's
state is kept; where one Metal kernel runs all rows, its inputs are kept, and it runs again over the first n.
The convolution's state after n rows is a slice of the convolution's input.
Source: Gated Delta Networks (Yang et al. 2412.06464); mlx-lm's `models.gated_delta`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models import gated_delta
from mlx_lm.models.cache import ArraysCache

from mlxmtp.targets.patches.observe import observe, rebind, uses

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

    def begin_pass(self, num_tokens: int) -> None:  # noqa: ARG002
        """Begin to keep the states of rows; a prefill, which is not announced, keeps none."""
        self._conv.open = True

    def end_pass(self) -> None:
        self._conv.open = False

    def take(self, before: RecurrentState) -> RecurrentRows:
        """Return what rolls back the pass that was just built, which began at `before`."""
        assert self._conv.input is not None
        rows = RecurrentRows(before, self._conv.input, self._state_after)
        self._conv.clear()
        self._state_after = None
        return rows

    def _update(
        self, q: mx.array, k: mx.array, v: mx.array, a: mx.array, b: mx.array, *rest: Any, **options: Any
    ) -> tuple[mx.array, mx.array]:
        """Run mlx-lm's `gated_delta_update`: q, k [B, T, Hk, Dk], v [B, T, Hv, Dv], a, b [B, T, Hv]."""
        rows = (q, k, v, a, b)
        if not self._conv.open or q.shape[1] == 1:
            result = gated_delta.gated_delta_update(*rows, *rest, **options)
        elif mx.default_device() == mx.gpu and mx.metal.is_available():
            result = gated_delta.gated_delta_update(*rows, *rest, **options)
            self._state_after = lambda n: gated_delta.gated_delta_update(*(x[:, :n] for x in rows), *rest, **options)[1]
        else:
            result = self._row_by_row(*rows, *rest[:3])
        return result

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
