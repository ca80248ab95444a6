"""Float16 against bfloat16: the timed products are those of the model."""

from typing import Any

import mlx.core as mx
import pytest

from mlxmtp.bench import precision


@pytest.mark.parametrize("mode", ["affine", "mxfp4"])
def test_a_quantised_model_has_quantised_products_timed(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    seen: list[tuple[mx.Dtype, int, dict[str, Any]]] = []
    product = mx.quantized_matmul

    def watched(x: mx.array, *parts: mx.array, **how: Any) -> mx.array:
        seen.append((x.dtype, x.shape[0], how))
        return product(x, *parts, **how)

    monkeypatch.setattr(mx, "quantized_matmul", watched)
    how = {"group_size": 32, "bits": 4, "mode": mode}
    times = precision.float16_times(64, how | {"lm_head": {"group_size": 32, "bits": 8}}, repeats=2)
    assert list(times) == [1, 256]
    assert min(times.values()) > 0
    chains = [
        (kind, rows, how | {"transpose": True})
        for rows, chain in ((1, 20), (256, 1))
        for kind in (mx.float16, mx.bfloat16) * 3
        for _ in range(chain)
    ]
    assert seen == chains


def test_a_dense_model_has_dense_ones() -> None:
    times = precision.float16_times(64, repeats=1)
    assert list(times) == [1, 256]
    assert min(times.values()) > 0
