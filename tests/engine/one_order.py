"""Models whose sums do not depend on how tokens were read: alone, as those of an answer, or several in one pass.

mlx-lm adds up two things in another order for one token than for several. A window that is full is a ring for one
token, and several read its keys in the order of time. Latent attention expands the latents into keys and values for
several tokens, and moves the query to the latents for one. Without these two, a turn has the bits of plain decoding
whatever was reused, so a comparison needs no tolerance. No bound of the difference could be stated: it grows with what
a model's weights make of the last bits.
"""

from typing import Any

import mlx.core as mx
from mlx_lm.models.base import create_causal_mask

from mlxmtp.targets import Target
from mlxmtp.targets.patches.observe import replace_call

ORDERED = ("gemma4", "deepseek_v32")
"""Of `KINDS` those that add up a token's terms in another order where it is read alone."""
STEPS = 1 << 18
"""Steps of 1 to which queries, keys, values and weights are rounded. A sum of their products is a whole number of
STEPS^-2, which float64 holds exactly up to 2^17."""


def read_by_latents(target: Target) -> None:
    """Have a model attend to the latents themselves in every pass over several tokens, as in a verify pass."""
    read_together: Any = type(target.model).__call__

    def call(model: Any, tokens: mx.array, *args: Any, **options: Any) -> Any:
        for latent in target.latent:
            latent.begin_pass(tokens.shape[1], 1)
        try:
            return read_together(model, tokens, *args, **options)
        finally:
            for latent in target.latent:
                latent.end_pass()

    replace_call(target.model, call)


def attention_of_whole_numbers(
    queries: mx.array, keys: mx.array, values: mx.array, *, scale: float, mask: Any = None, **_: object
) -> mx.array:
    """Attention of queries [B, heads, m, D] in sums of whole steps, which no order of the keys changes."""
    rows, count, groups = queries.shape[2], keys.shape[2], queries.shape[1] // keys.shape[1]
    keys, values = (mx.repeat(each, groups, axis=1) for each in (keys, values))
    scores = (_whole(queries) @ _whole(keys).swapaxes(-1, -2)).astype(mx.float32) * scale
    if mask == "causal":
        mask = create_causal_mask(rows, count - rows)
    if mask is not None:
        scores = mx.where(mask, scores, -mx.inf)
    weights = _whole(mx.exp(scores - scores.max(axis=-1, keepdims=True)))
    return ((weights @ _whole(values)) / weights.sum(-1, keepdims=True)).astype(mx.float32)


def _whole(values: mx.array) -> mx.array:
    return mx.round(values.astype(mx.float32) * STEPS).astype(mx.float64) / STEPS
