"""A head family of your own, in one file: how Qwen's MTP heads are read, written anew and registered.

.venv/bin/python examples/own_family.py
"""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models import qwen3_5
from mlx_lm.models.cache import KVCache

from mlxmtp import GenerationOptions, load
from mlxmtp.heads import Convention, Family, Recursion, register
from mlxmtp.targets import Cache, Target


class MyHead(Recursion, nn.Module):
    """z = fc([norm_e(E[x_{p+1}]); norm_h(h_p)]),  y = layer(z),  logits = output matrix of norm(y)."""

    family = "my-mtp"

    def __init__(self, target: Target) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        args = target.text_model.args
        size, eps = args.hidden_size, args.rms_norm_eps
        self.pre_fc_norm_embedding = nn.RMSNorm(size, eps=eps)  # named as the tensors mtp.*
        self.pre_fc_norm_hidden = nn.RMSNorm(size, eps=eps)
        self.fc = nn.Linear(2 * size, size, bias=False)
        self.layers = [qwen3_5.DecoderLayer(args, layer_idx=args.full_attention_interval - 1)]
        self.norm = nn.RMSNorm(size, eps=eps)
        self._target = target  # with an underscore: no parameter of this module

    def make_cache(self, target_cache: Cache) -> Cache:
        return [KVCache()]

    def __call__(self, hidden: mx.array, tokens: mx.array, cache: Cache) -> mx.array:
        embedding = self.pre_fc_norm_embedding(self._target.embed(tokens))
        x = self.fc(mx.concatenate([embedding, self.pre_fc_norm_hidden(hidden)], axis=-1))
        mask = cache[0].make_mask(x.shape[1], return_array=False, window_size=None)
        return self.normed(self.layers[0](x, mask, cache[0]), self.norm, for_logits=False)

    def logits(self, states: mx.array) -> mx.array:
        project = self.draft_output or self._target.project
        return project(self.normed(states, self.norm, for_logits=True))

    @property
    def output(self) -> Any:
        return self._target.output


def build(weights: dict[str, mx.array], target: Target, **_: Any) -> tuple[MyHead, dict[str, mx.array]]:
    """The module, and the weights by its names: raw checkpoints store norms without their offset of 1."""
    return MyHead(target), {name: w + 1 if w.ndim == 1 else w for name, w in weights.items()}


register(Family("my-mtp", ("qwen3_5",), build, conventions=(Convention(),)))

prompt = "Tell me a joke."
engine = load()
drafted = engine.generate(prompt, GenerationOptions(depth=3, max_tokens=60))
plain = engine.generate(prompt, GenerationOptions(depth=0, max_tokens=60))
assert drafted.tokens == plain.tokens, "whatever a head drafts, the text is that of plain decoding"
shares = ", ".join(f"{share:.0%}" for share in drafted.stats.acceptance_by_depth)
print(drafted.text)
print(f"{engine.head}: {drafted.stats.tokens_per_round:.2f} tokens a round, accepted at depth 1, 2, 3: {shares}")
