"""Ling 2.0 and LongCat-Flash, trunk and head, in numpy's float64 over whole sequences, without caches.

transformers has no Ling 2.0, and no head of LongCat-Flash. Ling is written from its makers' modeling file, LongCat from
transformers' trunk, vLLM's head, and the n-grams of its paper (2601.21204).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from tests import tiny
from tests.heads.layer_formulas import attention, heads, rms_norm, rotated, sigmoid

Layer = Mapping[str, np.ndarray]


def ling(folder: Path, tokens: mx.array, ahead: mx.array) -> dict[str, mx.array]:
    """The arrays of a golden file (scripts/make_goldens.py) for a checkpoint of Ling 2.0."""
    return outputs(Ling(folder), tokens, ahead)


def longcat(folder: Path, tokens: mx.array, ahead: mx.array) -> dict[str, mx.array]:
    """The same for LongCat-Flash and LongCat-Flash-Lite."""
    return outputs(Longcat(folder), tokens, ahead)


def outputs(model: "Ling | Longcat", tokens: mx.array, ahead: mx.array) -> dict[str, mx.array]:
    """Run the trunk, and the head at depths 1 to 3: each depth over all rows before it again."""
    ids, later = np.array(tokens[0]), np.array(ahead[0])
    rows, output = model.trunk(ids), model.w["lm_head.weight"].T
    found = {"trunk_hidden": rows, "trunk_logits": rows @ output}
    rows = rows[:-1]
    for depth in (1, 2, 3):
        states = model.head(rows, np.concatenate([ids[1:], later[: depth - 1]]))
        new = states if depth == 1 else states[-1:]
        found |= {f"head_hidden_d{depth}": new, f"head_logits_d{depth}": new @ output}
        rows = np.concatenate([rows, states[-1:]])
    return {name: mx.array(array.astype(np.float32))[None] for name, array in found.items()}


def linear(w: Layer, name: str, x: np.ndarray) -> np.ndarray:
    return x @ w[f"{name}.weight"].T


def mlp(w: Layer, path: str, x: np.ndarray) -> np.ndarray:
    gate = linear(w, f"{path}.gate_proj", x)
    return linear(w, f"{path}.down_proj", gate * sigmoid(gate) * linear(w, f"{path}.up_proj", x))


class Model:
    """A checkpoint's tensors."""

    def __init__(self, folder: Path) -> None:
        self.c: dict[str, Any] = json.loads((folder / "config.json").read_text())
        self.w = {name: np.array(array, np.float64) for name, array in tiny.load_weights(folder).items()}

    def under(self, prefix: str) -> Layer:
        return {name.removeprefix(prefix): array for name, array in self.w.items() if name.startswith(prefix)}

    def norm(self, w: Layer, name: str, x: np.ndarray) -> np.ndarray:
        return rms_norm(x, w[f"{name}.weight"], self.c["rms_norm_eps"])


class Ling(Model):
    def trunk(self, tokens: np.ndarray) -> np.ndarray:
        x = self.w["model.word_embeddings.weight"][tokens]
        for i in range(self.c["num_hidden_layers"]):
            x = self.layer(self.under(f"model.layers.{i}."), x)
        return self.norm(self.w, "model.norm", x)

    def head(self, hidden: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        w = self.under(f"model.layers.{self.c['num_hidden_layers']}.")
        embedding = self.norm(w, "enorm", self.w["model.word_embeddings.weight"][tokens])
        x = linear(w, "eh_proj", np.concatenate([embedding, self.norm(w, "hnorm", hidden)], axis=1))
        return self.norm(w, "final_layernorm", self.layer(w, x))

    def layer(self, w: Layer, x: np.ndarray) -> np.ndarray:
        x = x + self.attention(w, self.norm(w, "input_layernorm", x))
        z = self.norm(w, "post_attention_layernorm", x)
        return x + (self.experts(w, z) if "mlp.gate.weight" in w else mlp(w, "mlp", z))

    def attention(self, w: Layer, x: np.ndarray) -> np.ndarray:
        """Queries, keys and values of one matrix; a half of each head is rotated."""
        count, groups = self.c["num_attention_heads"], self.c["num_key_value_heads"]
        size = self.c["hidden_size"] // count
        dims, theta = int(size * self.c["partial_rotary_factor"]), self.c["rope_theta"]
        rows = heads(x, w["attention.query_key_value.weight"], count + 2 * groups)
        q, k, v = np.split(rows, [count, count + groups], axis=1)
        q = rotated(self.norm(w, "attention.query_layernorm", q), dims, theta)
        k = rotated(self.norm(w, "attention.key_layernorm", k), dims, theta)
        return linear(w, "attention.dense", attention(q, k, v, len(x), None).reshape(len(x), -1))

    def experts(self, w: Layer, x: np.ndarray) -> np.ndarray:
        scores = sigmoid(linear(w, "mlp.gate", x))
        y = mlp(w, "mlp.shared_experts", x)
        for row, own in enumerate(scores):
            chosen = np.argsort(own + w["mlp.gate.expert_bias"])[-self.c["num_experts_per_tok"] :]
            for e in chosen:
                share = own[e] / own[chosen].sum() * self.c["routed_scaling_factor"]
                y[row] += share * mlp(w, f"mlp.experts.{e}", x[row])
        return y


class Longcat(Model):
    def trunk(self, tokens: np.ndarray) -> np.ndarray:
        x = self.with_ngrams(tokens, self.w["model.embed_tokens.weight"][tokens])
        for i in range(self.c["num_layers"]):
            x = self.layer(self.under(f"model.layers.{i}."), x)
        return self.norm(self.w, "model.norm", x)

    def head(self, hidden: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """A layer with one attention and a dense MLP."""
        w = self.under("model.mtp.layers.0.")
        embedding = self.norm(w, "enorm.m", self.w["model.mtp.embed_tokens.weight"][tokens])
        x = linear(w, "eh_proj", np.concatenate([embedding, self.norm(w, "hnorm.m", hidden)], axis=1))
        x = x + self.attention(w, "self_attn", self.norm(w, "input_layernorm", x))
        y = x + mlp(w, "transformer_layer.mlp", self.norm(w, "post_attention_layernorm", x))
        return self.norm(self.w, "model.mtp.norm", y)

    def layer(self, w: Layer, x: np.ndarray) -> np.ndarray:
        """Two attentions and two MLPs; experts read what the first MLP reads, and come in after the second."""
        x = x + self.attention(w, "self_attn.0", self.norm(w, "input_layernorm.0", x))
        z = self.norm(w, "post_attention_layernorm.0", x)
        late = self.experts(w, z)
        x = x + mlp(w, "mlps.0", z)
        x = x + self.attention(w, "self_attn.1", self.norm(w, "input_layernorm.1", x))
        return x + mlp(w, "mlps.1", self.norm(w, "post_attention_layernorm.1", x)) + late

    def attention(self, w: Layer, path: str, x: np.ndarray) -> np.ndarray:
        """Latent attention; queries and latents are scaled by the width that their projection leaves out."""
        c, count = self.c, self.c["num_attention_heads"]
        narrow = rms_norm(linear(w, f"{path}.q_a_proj", x), w[f"{path}.q_a_layernorm.weight"])
        q = heads(narrow, w[f"{path}.q_b_proj.weight"], count) * np.sqrt(c["hidden_size"] / c["q_lora_rank"])
        latent, shared = np.split(linear(w, f"{path}.kv_a_proj_with_mqa", x), [c["kv_lora_rank"]], axis=1)
        latent = rms_norm(latent, w[f"{path}.kv_a_layernorm.weight"]) * np.sqrt(c["hidden_size"] / c["kv_lora_rank"])
        if f"{path}.kv_b_proj.weight" in w:
            kv = heads(latent, w[f"{path}.kv_b_proj.weight"], count)
            keys, values = np.split(kv, [c["qk_nope_head_dim"]], axis=2)
        else:  # as mlx-lm keeps it
            keys = np.einsum("pr,hrd->phd", latent, w[f"{path}.embed_q.weight"])
            values = np.einsum("pr,hdr->phd", latent, w[f"{path}.unembed_out.weight"])
        plain, turned = np.split(q, [c["qk_nope_head_dim"]], axis=2)
        places = np.repeat(in_pairs(shared[:, None], c["rope_theta"]), count, axis=1)
        q = np.concatenate([plain, in_pairs(turned, c["rope_theta"])], axis=2)
        y = attention(q, np.concatenate([keys, places], axis=2), values, len(x), None)
        return linear(w, f"{path}.o_proj", y.reshape(len(x), -1))

    def experts(self, w: Layer, x: np.ndarray) -> np.ndarray:
        """Some experts return their input."""
        powers = np.exp(linear(w, "mlp.router.classifier", x))
        scores = powers / powers.sum(axis=1, keepdims=True)
        y = np.zeros_like(x)
        for row, own in enumerate(scores):
            for e in np.argsort(own + w["mlp.router.e_score_correction_bias"])[-self.c["moe_topk"] :]:
                out = mlp(w, f"mlp.experts.{e}", x[row]) if e < self.c["n_routed_experts"] else x[row]
                y[row] += own[e] * self.c["routed_scaling_factor"] * out
        return y

    def with_ngrams(self, tokens: np.ndarray, x: np.ndarray) -> np.ndarray:
        """The mean of a token's embedding and those of the n-grams that end with it, by their hashes."""
        if "ngram_vocab_size_ratio" not in self.c:
            return x
        vocab, splits, longest = self.c["vocab_size"], self.c["emb_split_num"], self.c["emb_neighbor_num"]
        tables = [(n, j) for n in range(2, longest + 1) for j in range(splits)]
        for i, (n, _) in enumerate(tables):
            rows = self.w[f"model.ngram_embeddings.embedders.{i}.weight"]
            for p in range(len(tokens)):
                gram = [int(tokens[p - k]) if p >= k else 0 for k in range(n)]
                hashed = sum(token * vocab**k for k, token in enumerate(gram)) % len(rows)
                x[p] += linear(self.w, f"model.ngram_embeddings.post_projs.{i}", rows[hashed])
        return x / (1 + len(tables))


def in_pairs(x: np.ndarray, theta: float) -> np.ndarray:
    """Rotate the pairs (0, 1), (2, 3), ... of [L, heads, D] by position."""
    turned = rotated(np.concatenate([x[..., ::2], x[..., 1::2]], axis=-1), x.shape[-1], theta)
    return np.stack(np.split(turned, 2, axis=-1), axis=-1).reshape(x.shape)
