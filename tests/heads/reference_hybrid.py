"""Ling 2.5 and Kimi K3, trunk and head, in numpy's float64 over whole sequences, without caches.

transformers has neither. Written from vLLM's modules and the names of the raw tensors; experts are stored one by one.
"""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np

from tests import tiny

Layer = dict[str, np.ndarray]
EPS = 1e-6
PAIRS, HALVES = 2, 1
"""Which dimensions a rotation turns together: (0, 1), (2, 3), ... or (0, D / 2), (1, D / 2 + 1), ..."""


def ling(folder: Path, tokens: mx.array, ahead: mx.array) -> dict[str, mx.array]:
    """The arrays of a golden file (scripts/make_goldens.py) for a checkpoint of Ling 2.5."""
    return outputs(Ling(folder), tokens, ahead)


def kimi(folder: Path, tokens: mx.array, ahead: mx.array) -> dict[str, mx.array]:
    """The same for Kimi K3; hidden states are those before a norm."""
    return outputs(Kimi(folder), tokens, ahead)


def outputs(model: "Ling | Kimi", tokens: mx.array, ahead: mx.array) -> dict[str, mx.array]:
    """Run the trunk, and the head at depths 1 to 3: each depth over all rows before it again."""
    ids, later = np.array(tokens[0]), np.array(ahead[0])
    hidden, logits = model.trunk(ids)
    found = {"trunk_hidden": hidden, "trunk_logits": logits}
    rows = hidden[:-1]
    for depth in (1, 2, 3):
        states, logits = model.head(rows, np.concatenate([ids[1:], later[: depth - 1]]))
        new = slice(0 if depth == 1 else -1, None)
        found |= {f"head_hidden_d{depth}": states[new], f"head_logits_d{depth}": logits[new]}
        rows = np.concatenate([rows, states[-1:]])
    return {name: mx.array(array.astype(np.float32))[None] for name, array in found.items()}


class Model:
    """What both have: latent attention, experts, the head's projection."""

    base, place, experts_at, names = "model.", "attention", "mlp", ("gate_proj", "up_proj", "down_proj")
    out, bias, last, embedding = "dense", "gate.expert_bias", "final_layernorm", "model.word_embeddings.weight"
    rotates = True

    def __init__(self, folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        self.c = config.get("text_config", config)
        self.w = {name: np.array(w, np.float64) for name, w in tiny.load_weights(folder).items()}

    def layer(self, i: int) -> Layer:
        prefix = f"{self.base}layers.{i}."
        return {name.removeprefix(prefix): w for name, w in self.w.items() if name.startswith(prefix)}

    def pair(self, w: Layer, embeddings: np.ndarray, hidden: np.ndarray) -> np.ndarray:
        both = [rms(embeddings, w["enorm.weight"]), rms(hidden, w["hnorm.weight"])]
        return np.concatenate(both, axis=1) @ w["eh_proj.weight"].T

    def block(self, w: Layer, x: np.ndarray, mixer: np.ndarray | None = None) -> np.ndarray:
        """A layer with plain residuals; its mixer is latent attention, or has this output."""
        x = x + (self.attention(w, rms(x, w["input_layernorm.weight"])) if mixer is None else mixer)
        return x + self.mlp_or_experts(w, rms(x, w["post_attention_layernorm.weight"]))

    def attention(self, w: Layer, x: np.ndarray) -> np.ndarray:
        """Latent attention: keys and values are made of a narrow latent; a part of the key is shared by the heads."""
        c, length = self.c, len(x)
        own = {name.removeprefix(f"{self.place}."): a for name, a in w.items() if name.startswith(f"{self.place}.")}
        heads, nope, rope, value = (
            c[name] for name in ("num_attention_heads", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
        )
        narrow = rms(linear(own, "q_a_proj", x), own["q_a_layernorm.weight"])
        q = linear(own, "q_b_proj", narrow).reshape(length, heads, nope + rope)
        latent, shared = np.split(linear(own, "kv_a_proj_with_mqa", x), [c["kv_lora_rank"]], axis=1)
        kv = linear(own, "kv_b_proj", rms(latent, own["kv_a_layernorm.weight"]))
        keys, values = np.split(kv.reshape(length, heads, nope + value), [nope], axis=2)
        places = np.repeat(shared[:, None], heads, axis=1)
        if self.rotates:
            q, places = np.concatenate([q[..., :nope], rotated(q[..., nope:], PAIRS)], axis=2), rotated(places, PAIRS)
        scores = np.einsum("qhd,khd->hqk", q, np.concatenate([keys, places], axis=2)) / np.sqrt(nope + rope)
        shares = np.exp(scores) * np.tri(length)
        y = np.einsum("hqk,khd->qhd", shares / shares.sum(axis=2, keepdims=True), values).reshape(length, -1)
        return linear(own, self.out, self.gated(own, x, y))

    def gated(self, own: Layer, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return y

    def mlp_or_experts(self, w: Layer, x: np.ndarray) -> np.ndarray:
        own = {name.removeprefix(f"{self.experts_at}."): a for name, a in w.items() if name.startswith(self.experts_at)}
        if "gate.weight" not in own:
            return self.mlp(w, "mlp.", x, Model.names)
        scores = sigmoid(linear(own, "gate", x))
        inner, routed = self.narrowed(own, x), []
        for row, score in zip(inner, scores, strict=True):
            chosen = self.chosen(score + own[self.bias])
            shares = score[chosen] / score[chosen].sum() * self.c["routed_scaling_factor"]
            parts = [self.mlp(own, f"experts.{e}.", row, self.names) for e in chosen]
            routed.append(sum(share * part for share, part in zip(shares, parts, strict=True)))
        return self.widened(own, np.stack(routed)) + self.mlp(own, "shared_experts.", x, Model.names)

    def chosen(self, scores: np.ndarray) -> np.ndarray:
        """The best experts, of the groups whose two best ones have the highest sums."""
        c = self.c
        groups = np.split(np.arange(len(scores)), c.get("n_group", 1))
        groups.sort(key=lambda group: -np.sort(scores[group])[-2:].sum())
        allowed = np.concatenate(groups[: c["topk_group"]])
        count = c.get("num_experts_per_tok") or c["num_experts_per_token"]
        return allowed[np.argsort(-scores[allowed])[:count]]

    def narrowed(self, own: Layer, x: np.ndarray) -> np.ndarray:
        return linear(own, "routed_expert_down_proj", x) if "routed_expert_norm.weight" in own else x

    def widened(self, own: Layer, y: np.ndarray) -> np.ndarray:
        norm = own.get("routed_expert_norm.weight")
        return y if norm is None else linear(own, "routed_expert_up_proj", rms(y, norm))

    def mlp(self, own: Layer, path: str, x: np.ndarray, names: tuple[str, str, str]) -> np.ndarray:
        gate, up, down = (f"{path}{name}" for name in names)
        return linear(own, down, self.activated(linear(own, gate, x), linear(own, up, x)))

    def activated(self, gate: np.ndarray, up: np.ndarray) -> np.ndarray:
        return gate * sigmoid(gate) * up


class Ling(Model):
    """Ling 2.5: lightning attention in every layer but the last of a group."""

    def trunk(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x = self.w[self.embedding][tokens]
        for i in range(self.c["num_hidden_layers"]):
            w = self.layer(i)
            whole = (i + 1) % self.c["layer_group_size"] == 0
            x = self.block(w, x, None if whole else self.lightning(w, i, rms(x, w["input_layernorm.weight"])))
        hidden = rms(x, self.w["model.norm.weight"])
        return hidden, hidden @ self.w["lm_head.weight"].T

    def head(self, hidden: np.ndarray, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        w = self.layer(self.c["num_hidden_layers"])
        y = rms(self.block(w, self.pair(w, self.w[self.embedding][tokens], hidden)), w["final_layernorm.weight"])
        return y, y @ self.w["lm_head.weight"].T

    def lightning(self, w: Layer, i: int, x: np.ndarray) -> np.ndarray:
        """A state that each head decays by a rate of its own, and of its layer."""
        c, own = self.c, {name.removeprefix("attention."): a for name, a in w.items()}
        heads, size = c["num_attention_heads"], c["head_dim"]
        q, k, v = np.split(linear(own, "query_key_value", x).reshape(len(x), 3 * heads, size), 3, axis=1)
        q, k = rms(q, own["query_layernorm.weight"]), rms(k, own["key_layernorm.weight"])
        turned = size // 2
        q, k = (np.concatenate([rotated(a[..., :turned], HALVES), a[..., turned:]], axis=2) for a in (q, k))
        slopes = 2.0 ** (-8.0 / heads * np.arange(1, heads + 1))
        decay = np.exp(-slopes * (1 - i / (c["num_hidden_layers"] - 1) + 1e-5))[:, None, None]
        state, rows = np.zeros((heads, size, size)), []
        for query, key, value in zip(q, k, v, strict=True):
            state = state * decay + key[:, :, None] * value[:, None]
            rows.append(np.einsum("hd,hde->he", query, state) / np.sqrt(size))
        groups = np.stack(rows).reshape(len(x), c["group_norm_size"], -1)
        y = rms(groups, 1.0).reshape(len(x), -1) * own["g_norm.weight"]
        return linear(own, "dense", y * sigmoid(linear(own, "g_proj", x)))


class Kimi(Model):
    """Kimi K3: delta attention in most layers, and residuals that each layer mixes anew (AttnRes)."""

    base, place, experts_at, names = "language_model.model.", "self_attn", "block_sparse_moe", ("w1", "w3", "w2")
    out, bias, last = "o_proj", "gate.e_score_correction_bias", "shared_head.norm"
    rotates = False

    def trunk(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x = self.w[f"{self.base}embed_tokens.weight"][tokens]
        kept: list[np.ndarray] = []
        for i in range(self.c["num_hidden_layers"]):
            w = self.layer(i)
            read = rms(mixed(kept, x, w, "self_attention_res"), w["input_layernorm.weight"])
            y = self.delta(w, read) if i + 1 in self.c["linear_attn_config"]["kda_layers"] else self.attention(w, read)
            if i % self.c["attn_res_block_size"] == 0:
                kept, x = [*kept, x], y
            else:
                x = x + y
            read = rms(mixed(kept, x, w, "mlp_res"), w["post_attention_layernorm.weight"])
            x = x + self.mlp_or_experts(w, read)
        end = {name.removeprefix(self.base): w for name, w in self.w.items()}
        hidden = mixed(kept, x, end, "output_attn_res")
        return hidden, rms(hidden, end["norm.weight"]) @ self.w["language_model.lm_head.weight"].T

    def head(self, hidden: np.ndarray, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        w = self.layer(self.c["num_hidden_layers"])
        y = self.block(w, self.pair(w, w["embed_tokens.weight"][tokens], hidden))
        return y, rms(y, w["shared_head.norm.weight"]) @ w["shared_head.head.weight"].T

    def delta(self, w: Layer, x: np.ndarray) -> np.ndarray:
        """A state whose rows decay by gates, and that learns what it does not yet say of the key."""
        own = {name.removeprefix("self_attn."): a for name, a in w.items()}
        linear_config = self.c["linear_attn_config"]
        heads, size = linear_config["num_heads"], linear_config["head_dim"]
        q, k, v = (
            convolved(linear(own, f"{name}_proj", x), own[f"{name}_conv1d.weight"]).reshape(-1, heads, size)
            for name in "qkv"
        )
        q, k = (a / np.sqrt((a * a).sum(axis=2, keepdims=True) + EPS) for a in (q, k))
        raw = linear(own, "f_b_proj", linear(own, "f_a_proj", x)) + own["dt_bias"]
        gates = sigmoid(np.exp(own["A_log"])[:, None] * raw.reshape(-1, heads, size))
        decays, rates = np.exp(linear_config["gate_lower_bound"] * gates), sigmoid(linear(own, "b_proj", x))
        state, rows = np.zeros((heads, size, size)), []
        for t in range(len(x)):
            state = state * decays[t][:, :, None]
            said = np.einsum("hd,hde->he", k[t], state)
            state = state + k[t][:, :, None] * ((v[t] - said) * rates[t][:, None])[:, None]
            rows.append(np.einsum("hd,hde->he", q[t], state) / np.sqrt(size))
        y = rms(np.stack(rows), own["o_norm.weight"]).reshape(len(x), -1)
        return linear(own, "o_proj", y * sigmoid(linear(own, "g_proj", x)))

    def gated(self, own: Layer, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return y * sigmoid(linear(own, "g_proj", x))

    def activated(self, gate: np.ndarray, up: np.ndarray) -> np.ndarray:
        beta, bound = self.c["activation_situ_beta"], self.c["activation_situ_linear_beta"]
        return beta * np.tanh(gate / beta) * sigmoid(gate) * bound * np.tanh(up / bound)


def mixed(kept: list[np.ndarray], x: np.ndarray, w: Layer, name: str) -> np.ndarray:
    """The mean of the residuals of earlier blocks and of this one, weighted by a score of each."""
    if not kept:
        return x
    every = np.stack([*kept, x])
    scores = rms(every, w[f"{name}_norm.weight"]) @ w[f"{name}_proj.weight"][0]
    shares = np.exp(scores - scores.max(axis=0))
    return ((shares / shares.sum(axis=0))[..., None] * every).sum(axis=0)


def rms(x: np.ndarray, weight: np.ndarray | float) -> np.ndarray:
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + EPS) * weight


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def linear(w: Layer, name: str, x: np.ndarray) -> np.ndarray:
    return x @ w[f"{name}.weight"].T


def convolved(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The SiLU of a causal convolution [channels, 1, taps] of each channel of rows [T, channels]."""
    taps = weight.shape[2]
    padded = np.concatenate([np.zeros((taps - 1, x.shape[1])), x])
    y = sum(padded[i : i + len(x)] * weight[:, 0, i] for i in range(taps))
    return y * sigmoid(y)


def rotated(x: np.ndarray, together: int) -> np.ndarray:
    """Rotate rows [T, heads, D] by their positions."""
    length, _, size = x.shape
    angles = np.arange(length)[:, None] * 10000.0 ** (-np.arange(0, size, 2) / size)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    if together == PAIRS:
        one, other = x[..., ::2], x[..., 1::2]
    else:
        one, other = np.split(x, 2, axis=2)
    turned = [one * cos - other * sin, one * sin + other * cos]
    return np.stack(turned, axis=-1).reshape(x.shape) if together == PAIRS else np.concatenate(turned, axis=2)
