"""The assistants of Gemma 4: draft models that read the target's keys and values.

    x = pre_projection([E[x_L] * sqrt(H); h_{L-1}]),  y = norm(layers(x)),  logits = embed_tokens^T y,
    h for the next depth = post_projection(y)

All depths have one position and see the same keys of the target; nothing is appended. E and h are the target's, h after
its final norm. A layer reads the last of the target's layers of its type that has its own keys.
Source: transformers' Gemma 4 assistant; docs/families.md names where others differ.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models import gemma4_text

from mlxmtp.errors import HeadError, OptionError
from mlxmtp.heads.family import Family
from mlxmtp.targets import Cache, HiddenSide, SharedKVCache, Target, impossible_count, matrix_rows, share_attention

TRUNKS = ("gemma4", "gemma4_text", "gemma4_unified")
_NAME = re.compile(r"gemma-4-(E2B|E4B|12B|26B-A4B|31B)-it(?!\w)", re.IGNORECASE)


@dataclass(frozen=True)
class DraftPosition:
    """The position of all drafts.

    Args:
        position: "next": after the last token that the target has read, as in transformers and llama.cpp; "last": of
            that token, as in vLLM, SGLang and mlx-vlm.
    """

    position: Literal["next", "last"] = "next"


class GemmaHead(nn.Module):
    """An assistant.

    Args:
        target: the trunk.
        args: the configuration of the assistant's language model.
        clusters: (clusters of its vocabulary, clusters that are scored in full); None: the whole vocabulary is.
    """

    family = "gemma4-assistant"
    has_kv_cache = False
    convention = DraftPosition()
    hidden_at: HiddenSide = "post"

    def __init__(self, target: Target, args: gemma4_text.ModelArgs, clusters: tuple[int, int] | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        trunk, size = target.text_model.args, args.hidden_size
        self.pre_projection = nn.Linear(2 * trunk.hidden_size, size, bias=False)
        self.post_projection = nn.Linear(size, trunk.hidden_size, bias=False)
        self.model: Any = nn.Module()
        self.model.embed_tokens = nn.Embedding(args.vocab_size, size)
        self.model.layers = [gemma4_text.DecoderLayer(args, i) for i in range(args.num_hidden_layers)]
        self.model.norm = nn.RMSNorm(size, eps=args.rms_norm_eps)
        if clusters:
            self.masked_embedding: Any = nn.Module()
            self.masked_embedding.centroids = nn.Linear(size, clusters[0], bias=False)
            self.masked_embedding.token_ordering = mx.zeros((args.vocab_size,), mx.int64)
        self._clusters = clusters
        self._target = target
        own = trunk.layer_types[: trunk.num_hidden_layers - trunk.num_kv_shared_layers]
        owners = {kind: i for i, kind in enumerate(own)}  # the last layer of each type
        self._sources = tuple(owners[layer.layer_type] for layer in self.model.layers)

    def make_cache(self, target_cache: Cache) -> Cache:
        return [SharedKVCache(target_cache[source]) for source in self._sources]

    def __call__(self, hidden: mx.array, tokens: mx.array, cache: Cache) -> mx.array:
        embedding = self._target.embed(tokens) * self._target.text_model.args.hidden_size**0.5
        x = self.pre_projection(mx.concatenate([embedding, hidden], axis=-1))
        rows = x.shape[1]
        position = mx.array(cache[0].offset - rows + (self.convention.position == "next"))
        for layer, shared in zip(self.model.layers, cache, strict=True):
            keys, mask = shared.fetch(rows)
            x, _, _ = layer(x, mask, None, shared_kv=keys, offset=position)
        out: mx.array = self.model.norm(x)
        return out

    def logits(self, states: mx.array) -> mx.array:
        if self._clusters is None:
            logits: mx.array = self.model.embed_tokens.as_linear(states)
            return logits
        count, selected = self._clusters
        scores = self.masked_embedding.centroids(states)
        best = mx.argpartition(-scores, kth=selected - 1, axis=-1)[..., :selected]
        # [B, T, tokens of the selected clusters]
        ids = self.masked_embedding.token_ordering.reshape(count, -1)[best].flatten(-2)
        chosen = (matrix_rows(self.model.embed_tokens, ids) @ states[..., None])[..., 0]
        excluded = mx.full((*states.shape[:-1], self.masked_embedding.token_ordering.size), -mx.inf, chosen.dtype)
        return mx.put_along_axis(excluded, ids, chosen, axis=-1)

    def prepare(self) -> None:
        share_attention(self.modules())  # type: ignore[no-untyped-call]

    def restrict_vocab(self, tokens: Sequence[int]) -> None:  # noqa: ARG002
        raise OptionError("a Gemma 4 assistant is small and chooses its tokens by itself; leave --draft-vocab out")

    def next_hidden(self, states: mx.array) -> mx.array:
        hidden: mx.array = self.post_projection(states)
        return hidden


def build(
    weights: dict[str, mx.array], target: Target, *, config: dict[str, Any] | None = None, **_: Any
) -> tuple[Any, dict[str, mx.array]]:
    """Return the head's module without its weights, and its weights."""
    if not config or "pre_projection.weight" not in weights:
        raise HeadError("the head's tensors are not those of a Gemma 4 assistant (no pre_projection)")
    text, trunk = config.get("text_config"), target.text_model.args
    if not isinstance(text, dict) or "num_hidden_layers" not in text:
        raise HeadError("the assistant's config has no text_config with num_hidden_layers; download it again")
    if found := impossible_count(text, len(weights)):
        raise HeadError(f"the assistant's files do not belong together: {found}")
    args = gemma4_text.ModelArgs.from_dict({**text, "num_kv_shared_layers": text["num_hidden_layers"]})
    clusters = None
    if config.get("use_ordered_embeddings"):
        clusters = (int(config.get("num_centroids", 0)), int(config.get("centroid_intermediate_top_k", 0)))
    _check(config.get("backbone_hidden_size"), args, clusters, trunk)
    head = GemmaHead(target, args, clusters)
    tied = {name: w for name, w in weights.items() if not name.startswith("lm_head.")}  # a copy of embed_tokens
    return head, tied


def _check(backbone: Any, args: Any, clusters: tuple[int, int] | None, trunk: Any) -> None:
    """Check the sizes that no tensor's shape shows.

    Raises:
        HeadError: naming the first that does not fit the trunk.
    """
    sizes = {"backbone_hidden_size": (backbone, trunk.hidden_size)}
    for name in ("vocab_size", "head_dim", "global_head_dim"):
        sizes[name] = getattr(args, name), getattr(trunk, name)
    for name, (found, ours) in sizes.items():
        if found != ours:
            raise HeadError(f"the assistant has {name} {found}, the model {ours}: they do not belong together")
    heads, types = args.num_attention_heads, args.layer_types[: args.num_hidden_layers]
    full = trunk.num_global_key_value_heads if trunk.attention_k_eq_v else None
    for shared in (trunk.num_key_value_heads, full or 1):
        if not heads or heads % shared:
            raise HeadError(f"the assistant has {heads} attention heads; expected a multiple of the model's {shared}")
    if len(types) < args.num_hidden_layers or not set(types) <= set(trunk.layer_types):
        raise HeadError(f"the assistant has layers {types}, the model {sorted(set(trunk.layer_types))}")
    if clusters and (not 0 < clusters[1] <= clusters[0] or args.vocab_size % clusters[0]):
        raise HeadError(
            f"the assistant looks into {clusters[1]} of {clusters[0]} clusters of {args.vocab_size} tokens; expected "
            "num_centroids to divide them, and centroid_intermediate_top_k to be at most as many"
        )


def repo(names: Iterable[str]) -> str | None:
    """Return the repo of the assistant of a model with one of these names, or None."""
    found = next((match for name in names if (match := _NAME.search(name))), None)
    return f"google/gemma-4-{found[1].upper()}-it-assistant" if found else None


CONVENTIONS = (DraftPosition(), DraftPosition("last"))
GEMMA = Family(GemmaHead.family, TRUNKS, build, layers=None, conventions=CONVENTIONS, repo=repo)
