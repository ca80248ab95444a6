"""mlx-lm's models as targets: logits with hidden states, and passes that can be rolled back to any token."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, Literal

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlxmtp.checkpoints import stated_context, text_config
from mlxmtp.errors import PromptError
from mlxmtp.machine import apple_gpu, on_metal
from mlxmtp.targets.passes import Pass, PassListener, in_pass
from mlxmtp.targets.patches.latent import LatentAttention, has_latents
from mlxmtp.targets.patches.observe import observe
from mlxmtp.targets.rollback import Cache, rollback_of
from mlxmtp.targets.shared_pass import share_attention
from mlxmtp.threads import note_thread

HiddenSide = Literal["post", "pre"]
"""Hidden states after a norm ("post") or before it ("pre")."""

_QUERY_HEADS = ("num_attention_heads", "num_heads", "n_heads", "n_head")
_KEY_HEADS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads")
"""What mlx-lm's attention modules call their numbers of heads."""
_STATED_KEY_HEADS = ("num_key_value_heads", "num_global_key_value_heads")
"""What configs call them."""
_KEY_BOUNDS = (1024, 4096, 8192, 16_384, 32_768, 65_536)
"""Numbers of keys from which on, or beyond which, Metal's attention adds in another order."""
_ONE_ROW_PRODUCTS = {"s": 6, "d": 8}
"""On M1 and M2, by the class of the chip: rows of a product with a large matrix that run the kernel for one row."""
SEES_AHEAD = {"phi3small": "attention to later tokens of a pass"}
"""Model types that mlx-lm computes otherwise than token by token, and how."""


class Target:
    """A model of mlx-lm that also returns the hidden states at its final norm.

    Args:
        model: the loaded model.
        config: its configuration as mlx-lm read it.

    Attributes:
        irreversible: why passes cannot be rolled back; None: they can.
        reversible: whether they can; if not, `Pass.commit` must keep all tokens.
        hidden_at: which hidden states `forward` returns.
        listeners: called before and after each pass, besides the target's own layers.
        min_tokens: `open` pads a pass to this many tokens, and `commit` removes the padding.
        whole_attention: attention modules run whole for each sequence of a shared pass (targets/sharing.py).
        longest_shared: the most tokens of each of so many sequences in one pass.
    """

    def __init__(self, model: Any, config: dict[str, Any]) -> None:
        self.model = model
        self.config = config
        self.hidden_at: HiddenSide = "post"
        self.listeners: list[PassListener] = []
        self.min_tokens, self.whole_attention = 1, False
        self.longest_shared: Callable[[int], int] = lambda _: 2**31 - 1
        self._rollback = rollback_of(model, self.listeners)
        modules: list[nn.Module] = model.modules()
        trunk: Any = getattr(self.text_model, "model", None) or getattr(self.text_model, "backbone", None)
        norm = getattr(trunk, "norm", None) or getattr(trunk, "norm_f", None)
        # None: no family of heads supports such a trunk
        self._final_norm = None if norm is None else observe(norm, open=True)
        self.latent = [LatentAttention(module, split_rows=True) for module in modules if has_latents(module)]
        self.irreversible = SEES_AHEAD.get(self.model_type)
        self.reversible = self.irreversible is None
        share_attention(modules)

    @property
    def model_type(self) -> str:
        kind: str = self.config["model_type"]
        return kind

    @property
    def text_config(self) -> dict[str, Any]:
        """The language model's part of the configuration."""
        return text_config(self.config)

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding; token ids are below it."""
        return int(self.embedding.weight.shape[0])

    @property
    def context(self) -> int | None:
        """Most tokens that the model was made for; None: its configuration does not say."""
        stated = stated_context(self.config)
        return int(stated) if stated else None

    @property
    def max_fast_tokens(self) -> int:
        """The longest pass, in tokens, for which a GPU uses its kernels for few rows; unbounded on a CPU.

        At most 8, which the exactness probe compares too. On Metal, attention leaves its fast kernel for more than 8
        rows, and for more than 32 products of rows and query heads per key head; it is then 2 to 7 times slower.
        Source: MLX 0.32.4, backend/metal/scaled_dot_product_attention.cpp.
        """
        if not on_metal():
            return 8 if mx.default_device() == mx.Device(mx.gpu) else 2**31 - 1
        return max(min(8, 32 // self._heads_per_key), 2)

    @property
    def one_row_products(self) -> int:
        """The most rows of a product with an affine matrix of any size that run the kernel for one row; 0: none.

        So they do on Apple's GPUs before M3: a row of the grid for each row.
        Source: MLX 0.32.4, backend/metal/quantized.cpp.
        """
        generation, chip = apple_gpu()
        return _ONE_ROW_PRODUCTS.get(chip, 5) if 0 < generation < 15 and on_metal() else 0

    def longest_pass(self, *offsets: int) -> int:
        """Return the most tokens, at least 1, of a pass of sequences that have read so many, with bits of their own.

        Metal's attention chooses kernels by the number of keys, which a pass shares and plain decoding counts for each
        token: no pass crosses a bound of theirs, whatever it was compared with. Unbounded on other devices.
        Source: MLX 0.32.4, backend/metal/scaled_dot_product_attention.cpp.
        """
        most = self.longest_shared(len(offsets)) if len(offsets) > 1 else 2**31 - 1
        for offset in offsets if on_metal() else ():
            first = offset + self.min_tokens  # keys of the first plain pass
            most = min(most, next((bound - first for bound in _KEY_BOUNDS if bound >= first), most))
        return max(most, 1)

    @cached_property
    def _heads_per_key(self) -> int:
        return heads_per_key(self.text_config, self.model.modules())

    @property
    def text_model(self) -> Any:
        """The language model inside a vision-language wrapper, or the model itself."""
        return getattr(self.model, "language_model", self.model)

    def make_cache(self) -> Cache:
        """Return an empty cache for one sequence: one entry per layer that has its own keys and values, or state."""
        return self._rollback.make_cache()

    def forward(self, tokens: mx.array, cache: Cache) -> tuple[mx.array, mx.array]:
        """Run the model over tokens [B, T]; return logits [B, T, V] and hidden states [B, T, H] at `hidden_at`."""
        note_thread()
        logits: mx.array = self.model(tokens, cache=cache)
        if self._final_norm is None:
            return logits, mx.zeros((*tokens.shape, 0))
        hidden = self._final_norm.output if self.hidden_at == "post" else self._final_norm.input
        assert hidden is not None
        self._final_norm.clear()
        return logits, hidden

    def open(self, tokens: mx.array, cache: Cache) -> Pass:
        """Run a pass over tokens [1, m] that can be rolled back; its `commit` keeps the first of them."""
        return self.open_shared([tokens], [cache])[0]

    def open_shared(self, tokens: Sequence[mx.array], caches: Sequence[Cache]) -> list[Pass]:
        """Run one pass over the tokens [1, m_b] of several sequences; each can be rolled back by itself.

        All sequences get the rows of the longest. More than one needs a model that can (targets/sharing.py).
        """
        padded = max(self.min_tokens, *(own.shape[1] for own in tokens))
        rows = [repeat_last(own, padded) for own in tokens]
        together = rows[0] if len(rows) == 1 else mx.concatenate(rows)
        (logits, hidden), commits = self._rollback.run(self._forward_in_pass, together, caches)
        passes = []
        for b, own in enumerate(tokens):
            count = own.shape[1]
            passes.append(Pass(_part(logits, b, count), _part(hidden, b, count), commits[b], padded))
        return passes

    def _forward_in_pass(self, tokens: mx.array, cache: Cache) -> tuple[mx.array, mx.array]:
        num_sequences, num_tokens = tokens.shape
        with in_pass([*self.latent, *self.listeners], num_tokens, num_sequences):
            return self.forward(tokens, cache)

    def embed(self, tokens: mx.array) -> mx.array:
        """Return embeddings [B, T, H] of tokens [B, T], by the matrix that heads share."""
        embeddings: mx.array = self.embedding(tokens)
        return embeddings

    def project(self, hidden: mx.array) -> mx.array:
        """Return logits [B, T, V] of normed hidden states [B, T, H], by the output matrix that heads share."""
        logits: mx.array = (self.output.as_linear if self.output is self.embedding else self.output)(hidden)
        return logits

    @cached_property
    def embedding(self) -> Any:
        """The module of the embedding matrix; a model that has others, of positions or layers, makes it first."""
        leaves: Any = tree_flatten(self.text_model.leaf_modules(), is_leaf=nn.Module.is_module)
        return next(module for _, module in leaves if hasattr(module, "as_linear"))

    @property
    def output(self) -> Any:
        """The module of the output matrix; the embedding, if they are tied."""
        return getattr(self.text_model, "lm_head", None) or self.embedding


def repeat_last(rows: mx.array, count: int) -> mx.array:
    """Return rows [1, n, ...] with the last repeated up to `count` rows; where there are as many, they themselves."""
    missing = count - rows.shape[1]
    return mx.concatenate([rows, mx.repeat(rows[:, -1:], missing, axis=1)], axis=1) if missing > 0 else rows


def _part(rows: mx.array, b: int, num_tokens: int) -> mx.array:
    """Return sequence b's first rows [1, n, ...] of [B, m, ...]."""
    return rows if rows.shape[:2] == (1, num_tokens) else rows[b : b + 1, :num_tokens]


def check_ids(tokens: Sequence[int], vocab_size: int) -> None:
    """Check that the model's embedding has a row for each token id: a lookup beyond it reads foreign memory.

    Args:
        vocab_size: rows of the embedding.

    Raises:
        PromptError: it has not.
    """
    bad = next((token for token in tokens if not 0 <= token < vocab_size), None)
    if bad is not None:
        raise PromptError(f"token id {bad} is outside the vocabulary; expected 0 to {vocab_size - 1}")


def heads_per_key(config: Mapping[str, Any], modules: Iterable[nn.Module]) -> int:
    """Return the query heads per key head, the most of all layers, which may differ in it."""
    stated = _first_count(config.get, _QUERY_HEADS)
    pairs = [(stated, _first_count(config.get, (name,))) for name in _STATED_KEY_HEADS]
    for module in modules:
        value_of = partial(getattr, module)
        pairs.append((_first_count(value_of, _QUERY_HEADS), _first_count(value_of, _KEY_HEADS)))
    return max([1, *(queries // keys for queries, keys in pairs if keys)])


def _first_count(value_of: Callable[[str, None], Any], names: tuple[str, ...]) -> int:
    """Return the first value of these names that is a number; 0: there is none."""
    return next((value for name in names if isinstance(value := value_of(name, None), int)), 0)


def matrix_rows(matrix: nn.Module, ids: mx.array) -> mx.array:
    """Return rows [n, H] of an embedding or output matrix, dequantised."""
    rows: mx.array = matrix["weight"][ids]
    if "scales" not in matrix:
        return rows
    packing: Any = matrix
    biases = matrix["biases"][ids] if "biases" in matrix else None
    options = {"group_size": packing.group_size, "bits": packing.bits, "mode": packing.mode}
    return mx.dequantize(rows, matrix["scales"][ids], biases, **options)
