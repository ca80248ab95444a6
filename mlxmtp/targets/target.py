"""mlx-lm's models seen as targets: logits with hidden states, and passes whose rows can be taken back."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, Protocol

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import RotatingKVCache, make_prompt_cache

from mlxmtp.checkpoints import text_config
from mlxmtp.targets.latent import LatentAttention, has_latents
from mlxmtp.targets.observe import observe
from mlxmtp.targets.recurrent import RecurrentLayer, RecurrentRows
from mlxmtp.targets.states import is_trimmable, leaf_caches
from mlxmtp.targets.window import WindowCache, give_rows_their_rings, has_windows

Cache = list[Any]
Where = Literal["post", "pre"]
"""Hidden states after the final norm, as the output matrix sees them, or before it."""


class PassListener(Protocol):
    """Learns of the passes that `Target.open` makes."""

    def begin_pass(self, num_tokens: int) -> None:
        """A pass over `num_tokens` tokens begins."""

    def end_pass(self) -> None:
        """The pass has been built."""


class Target:
    """A model of mlx-lm, its hidden states tapped at the final norm.

    Args:
        model: the loaded model.
        config: its configuration as mlx-lm read it.

    `reversible`: every layer's cache can take rows back. One that cannot must never be asked to.
    `hidden_at`: which hidden states are given out.
    `listeners`: are told of each pass besides the target's own layers.
    `min_tokens`: `open` pads a pass to this many tokens and takes the padding back.
    """

    def __init__(self, model: Any, config: dict[str, Any]) -> None:
        self.model = model
        self.config = config
        self.hidden_at: Where = "post"
        self.listeners: list[PassListener] = []
        self.min_tokens = 1
        self._trunk: Any = getattr(self.text_model, "model", None)
        norm = getattr(self._trunk, "norm", None)
        self._final_norm = None if norm is None else observe(norm, open=True)  # None: no family of heads stands on it
        self._recurrent = {
            i: RecurrentLayer(layer.linear_attn)
            for i, layer in enumerate(model.layers)
            if hasattr(layer, "linear_attn")
        }
        attentions = [layer.self_attn for layer in model.layers if hasattr(layer, "self_attn")]
        self.latent = [
            LatentAttention(attention, rows_alone=True) for attention in attentions if has_latents(attention)
        ]
        kept = make_prompt_cache(model)
        self._windows = any(type(layer) is RotatingKVCache for layer in kept) and all(map(has_windows, attentions))
        if self._windows:
            for attention in attentions:
                give_rows_their_rings(attention)
        self.reversible = all(
            all(map(is_trimmable, leaf_caches([layer]))) or isinstance(layer, WindowCache) or i in self._recurrent
            for i, layer in enumerate(self.make_cache())
        )

    @property
    def model_type(self) -> str:
        kind: str = self.config["model_type"]
        return kind

    @property
    def text_config(self) -> dict[str, Any]:
        """The language model's part of the configuration."""
        return text_config(self.config)

    @property
    def fast_rows(self) -> int:
        """Rows of a pass up to which a GPU's kernels are those for few rows; a CPU has no such bound.

        At most 8, which are also those that identity is shown for. On Metal attention leaves its fast kernel beyond 8
        rows and where m rows of gqa queries a key's head are more than 32 (MLX 0.32.1, backend/metal,
        scaled_dot_product_attention.cpp), and is then 2 to 7 times slower.
        """
        if mx.default_device() != mx.Device(mx.gpu):
            return 2**31 - 1
        if not mx.metal.is_available():
            return 8
        heads = self.text_config.get("num_attention_heads") or 1
        gqa = heads // (self.text_config.get("num_key_value_heads") or heads)
        return max(min(8, 32 // gqa), 2)

    @property
    def text_model(self) -> Any:
        """The language model inside a vision-language wrapper, or the model itself."""
        return getattr(self.model, "language_model", self.model)

    def make_cache(self) -> Cache:
        """An empty cache for one sequence, one entry a layer that has keys and values, or a state, of its own."""
        cache: Cache = make_prompt_cache(self.model)
        if self._windows:
            cache = [WindowCache.like(c) if type(c) is RotatingKVCache else c for c in cache]
        return cache

    def forward(self, tokens: mx.array, cache: Cache) -> tuple[mx.array, mx.array]:
        """Feed tokens [B, T]; returns logits [B, T, V] and hidden states [B, T, H], as `hidden_at` says."""
        logits: mx.array = self.model(tokens, cache=cache)
        if self._final_norm is None:
            return logits, mx.zeros((*tokens.shape, 0))
        hidden = self._final_norm.output if self.hidden_at == "post" else self._final_norm.input
        assert hidden is not None
        self._final_norm.clear()
        return logits, hidden

    def open(self, tokens: mx.array, cache: Cache) -> "Pass":
        """Feed tokens [1, m] in a pass whose last rows can be taken back, each row computed as it would be alone."""
        num_tokens, padded = tokens.shape[1], max(tokens.shape[1], self.min_tokens)
        if padded > num_tokens:
            tokens = mx.concatenate([tokens, mx.repeat(tokens[:, -1:], padded - num_tokens, axis=1)], axis=1)
        before = {i: (cache[i][0], cache[i][1]) for i in self._recurrent}
        with self._in_pass(cache, num_tokens=padded):
            logits, hidden = self.forward(tokens, cache)
        if padded > num_tokens:
            logits, hidden = logits[:, :num_tokens], hidden[:, :num_tokens]
        recurrent = {i: layer.take(before[i]) for i, layer in self._recurrent.items()}
        return Pass(logits, hidden, cache, recurrent, padded)

    @contextmanager
    def _in_pass(self, cache: Cache, num_tokens: int) -> Iterator[None]:
        windows = [layer for layer in cache if isinstance(layer, WindowCache)]
        listeners: list[PassListener] = [*self._recurrent.values(), *self.latent, *windows, *self.listeners]
        try:
            for listener in listeners:
                listener.begin_pass(num_tokens)
            yield
        finally:
            for listener in listeners:
                listener.end_pass()

    def embed(self, tokens: mx.array) -> mx.array:
        """Embeddings [B, T, H] of tokens [B, T]: the matrix that heads share."""
        embeddings: mx.array = self.embedding(tokens)
        return embeddings

    def project(self, hidden: mx.array) -> mx.array:
        """Logits [B, T, V] of normed hidden states [B, T, H]: the output matrix that heads share."""
        logits: mx.array = (self.output.as_linear if self.output is self.embedding else self.output)(hidden)
        return logits

    @property
    def embedding(self) -> Any:
        """The module of the embedding matrix."""
        return self._trunk.embed_tokens

    @property
    def output(self) -> Any:
        """The module of the output matrix; the embedding's, where they are tied."""
        return self.text_model.lm_head if hasattr(self.text_model, "lm_head") else self.embedding


def matrix_rows(matrix: nn.Module, ids: mx.array) -> mx.array:
    """Rows [n, H] of an embedding or output matrix, whole or quantised."""
    rows: mx.array = matrix["weight"][ids]
    if "scales" not in matrix:
        return rows
    packing: Any = matrix
    biases = matrix["biases"][ids] if "biases" in matrix else None
    options = {"group_size": packing.group_size, "bits": packing.bits, "mode": packing.mode}
    return mx.dequantize(rows, matrix["scales"][ids], biases, **options)


class Pass:
    """One pass of the target over m tokens: a transaction on the caches.

    Commit it once, before the next pass over the same caches.

    Args:
        logits: [B, m, V]. hidden: [B, m, H], as the target's `hidden_at` says.
        padded: tokens that the caches have taken, at least m.
    """

    def __init__(
        self, logits: mx.array, hidden: mx.array, cache: Cache, recurrent: dict[int, RecurrentRows], padded: int
    ) -> None:
        self.logits = logits
        self.hidden = hidden
        self._cache = cache
        self._recurrent = recurrent
        self._padded = padded

    def commit(self, num_tokens: int) -> None:
        """Leave every layer's cache as if only the first `num_tokens` tokens had been fed."""
        padded = self._padded
        for i, layer in enumerate(self._cache):
            if i in self._recurrent:
                self._recurrent[i].commit(layer, num_tokens, of=padded)
            elif isinstance(layer, WindowCache):
                layer.commit(num_tokens, of=padded)
            elif num_tokens < padded:
                layer.trim(padded - num_tokens)
