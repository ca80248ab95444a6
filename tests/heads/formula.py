"""The heads of Ling 2.5 and Kimi K3 in numpy's float64, from vLLM's modules and the names of the raw tensors."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from tests import tiny

Array = np.ndarray[Any, np.dtype[np.float64]]
EPS = 1e-6


def rms(x: Array, weight: Array, eps: float) -> Array:
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) * weight


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


class Layer:
    """A head's layer over whole sequences, without a cache.

    Args:
        folder: a raw checkpoint of `kind`, with separate experts.
    """

    def __init__(self, kind: tiny.HybridKind, folder: Path, sizes: tiny.HybridSizes) -> None:
        self.kimi = kind == "kimi_k3"
        self.s = sizes
        config = json.loads((folder / "config.json").read_text())
        self.config = config.get("text_config", config)
        every = {name: np.array(w, np.float64) for name, w in tiny.load_weights(folder).items()}
        base = "language_model.model." if self.kimi else "model."
        prefix = f"{base}layers.{len(sizes.pattern)}."
        self.w = {name.removeprefix(prefix): w for name, w in every.items() if name.startswith(prefix)}
        self.embedding = self.w["embed_tokens.weight"] if self.kimi else every[f"{base}word_embeddings.weight"]
        self.output = self.w["shared_head.head.weight"] if self.kimi else every["lm_head.weight"]

    def __call__(self, hidden: Array, tokens: Any) -> tuple[Array, Array]:
        """Return the states passed on, and the logits, of rows [T, H] and the tokens [T] after them."""
        pair = [self.norm("enorm", self.embedding[tokens]), self.norm("hnorm", hidden.astype(np.float64))]
        z = np.concatenate(pair, axis=1) @ self.w["eh_proj.weight"].T
        x = z + self.attention(self.norm("input_layernorm", z))
        y = x + self.experts(self.norm("post_attention_layernorm", x))
        normed = self.norm("shared_head.norm" if self.kimi else "final_layernorm", y)
        return (y if self.kimi else normed), normed @ self.output.T

    def norm(self, name: str, x: Array) -> Array:
        return rms(x, self.w[f"{name}.weight"], EPS)

    def linear(self, name: str, x: Array) -> Array:
        return x @ self.w[f"{name}.weight"].T

    def attention(self, x: Array) -> Array:
        """Latent attention. Ling rotates pairs of neighbours; K3 rotates nothing, and gates the output."""
        s, place, length = self.s, "self_attn" if self.kimi else "attention", len(x)
        queries = self.norm(f"{place}.q_a_layernorm", self.linear(f"{place}.q_a_proj", x))
        q = self.linear(f"{place}.q_b_proj", queries).reshape(length, s.heads, s.nope + s.rope)
        latent, shared = np.split(self.linear(f"{place}.kv_a_proj_with_mqa", x), [s.kv_lora], axis=1)
        kv = self.linear(f"{place}.kv_b_proj", self.norm(f"{place}.kv_a_layernorm", latent))
        keys, values = np.split(kv.reshape(length, s.heads, s.nope + s.value), [s.nope], axis=2)
        places = np.repeat(shared[:, None], s.heads, axis=1)
        if not self.kimi:
            q, places = np.concatenate([q[..., : s.nope], rotated(q[..., s.nope :])], axis=2), rotated(places)
        scores = np.einsum("qhd,khd->hqk", q, np.concatenate([keys, places], axis=2)) / np.sqrt(s.nope + s.rope)
        scores[:, np.triu(np.ones((length, length), bool), 1)] = -np.inf
        shares = np.exp(scores - scores.max(axis=2, keepdims=True))
        out = np.einsum("hqk,khd->qhd", shares / shares.sum(axis=2, keepdims=True), values).reshape(length, -1)
        if self.kimi:
            out = out * sigmoid(self.linear(f"{place}.g_proj", x))
        return self.linear(f"{place}.{'o_proj' if self.kimi else 'dense'}", out)

    def experts(self, x: Array) -> Array:
        """The chosen experts and the shared one; Ling chooses within the best half of them."""
        s, place = self.s, "block_sparse_moe" if self.kimi else "mlp"
        scores = sigmoid(self.linear(f"{place}.gate", x))
        biased = scores + self.w[f"{place}.gate.{'e_score_correction_bias' if self.kimi else 'expert_bias'}"]
        inner = self.linear(f"{place}.routed_expert_down_proj", x) if s.latent else x
        names = ("w1", "w3", "w2") if self.kimi else ("gate_proj", "up_proj", "down_proj")
        routed = np.zeros_like(inner)
        for row in range(len(x)):
            allowed = np.arange(s.experts)
            if not self.kimi:  # two groups, of which the one with the better best two counts
                groups = np.split(allowed, 2)
                allowed = max(groups, key=lambda group: np.sort(biased[row, group])[-2:].sum())
            chosen = allowed[np.argsort(biased[row, allowed])[-s.top_k :]]
            total = scores[row, chosen].sum()
            for e in chosen:
                share = scores[row, e] / total * self.config["routed_scaling_factor"]
                routed[row] += share * self.mlp(f"{place}.experts.{e}", inner[row], names)
        if s.latent:
            routed = self.linear(f"{place}.routed_expert_up_proj", self.norm(f"{place}.routed_expert_norm", routed))
        return routed + self.mlp(f"{place}.shared_experts", x, ("gate_proj", "up_proj", "down_proj"))

    def mlp(self, path: str, x: Array, names: tuple[str, str, str]) -> Array:
        gate, up, down = (f"{path}.{name}" for name in names)
        one, other = self.linear(gate, x), self.linear(up, x)
        if self.kimi:
            beta, bound = self.config["activation_situ_beta"], self.config["activation_situ_linear_beta"]
            one, other = beta * np.tanh(one / beta) * sigmoid(one), bound * np.tanh(other / bound)
        else:
            one = one * sigmoid(one)
        return self.linear(down, one * other)


def rotated(x: Array) -> Array:
    """Rotate the pairs (0, 1), (2, 3), ... of rows [T, heads, D] by their positions."""
    length, _, size = x.shape
    angles = np.arange(length)[:, None] * 10000.0 ** (-np.arange(0, size, 2) / size)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    even, odd = x[..., ::2], x[..., 1::2]
    return np.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1).reshape(x.shape)
