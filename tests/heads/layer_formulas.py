"""The layers of Step-3.5's and MiMo-V2-Flash's heads in plain numpy, float64, over whole sequences and without caches.

The order of the parts is that of vLLM's `step3p5_mtp` and `mimo_v2_mtp`. A layer takes hidden states [L, H] and tokens
[L], and returns its block's output [L, H]; row p attends to the last `window` rows.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Arrays = Mapping[str, np.ndarray]
Layer = Callable[[np.ndarray, np.ndarray], np.ndarray]


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float = 1e-5) -> np.ndarray:
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * weight


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def rotated(x: np.ndarray, dims: int, theta: float) -> np.ndarray:
    """Rotate the first `dims` of [L, heads, D] by position, in halves."""
    half = dims // 2
    angles = np.arange(len(x))[:, None] / theta ** (np.arange(half) * 2 / dims)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    one, other = x[..., :half], x[..., half:dims]
    return np.concatenate([one * cos - other * sin, other * cos + one * sin, x[..., dims:]], axis=-1)


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, window: int, sinks: np.ndarray | None) -> np.ndarray:
    """Return [L, heads, D of values] of queries [L, heads, D], and keys and values of fewer heads."""
    k, v = (np.repeat(rows, q.shape[1] // k.shape[1], axis=1) for rows in (k, v))
    distance = np.arange(len(q))[:, None] - np.arange(len(q))
    scores = np.einsum("phd,shd->hps", q, k) * q.shape[2] ** -0.5
    weights = np.where((distance >= 0) & (distance < window), np.exp(scores), 0)
    total = weights.sum(axis=-1, keepdims=True) + (0 if sinks is None else np.exp(sinks)[:, None, None])
    return np.einsum("hps,shd->phd", weights / total, v)


def pair(w: Arrays, hidden: np.ndarray, embedding: np.ndarray, plus: float) -> np.ndarray:
    both = [rms_norm(embedding, w["enorm.weight"] + plus), rms_norm(hidden, w["hnorm.weight"] + plus)]
    return np.concatenate(both, axis=-1) @ w["eh_proj.weight"].T


def heads(x: np.ndarray, matrix: np.ndarray, count: int) -> np.ndarray:
    return (x @ matrix.T).reshape(len(x), count, -1)


def step_layer(w: Arrays, embed: np.ndarray, config: dict[str, Any]) -> Layer:
    """Norms are stored without 1; the gate of each head is a sigmoid; the MLP's inputs are clamped."""
    count = config["attention_other_setting"]["num_attention_heads"]
    groups, dims, theta = config["num_attention_groups"], config["head_dim"], config["rope_theta"][-1]
    limit = config["swiglu_limits_shared"][-1]

    def run(hidden: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        x = pair(w, hidden, embed[tokens], plus=1)
        z = rms_norm(x, w["input_layernorm.weight"] + 1)
        q = rms_norm(heads(z, w["self_attn.q_proj.weight"], count), w["self_attn.q_norm.weight"] + 1)
        k = rms_norm(heads(z, w["self_attn.k_proj.weight"], groups), w["self_attn.k_norm.weight"] + 1)
        v = heads(z, w["self_attn.v_proj.weight"], groups)
        out = attention(rotated(q, dims, theta), rotated(k, dims, theta), v, config["sliding_window"], None)
        out = out * sigmoid(z @ w["self_attn.g_proj.weight"].T)[..., None]
        x = x + out.reshape(len(x), -1) @ w["self_attn.o_proj.weight"].T
        z = rms_norm(x, w["post_attention_layernorm.weight"] + 1)
        gate, up = z @ w["mlp.gate_proj.weight"].T, z @ w["mlp.up_proj.weight"].T
        inner = np.minimum(gate * sigmoid(gate), limit) * np.clip(up, -limit, limit)
        return x + inner @ w["mlp.down_proj.weight"].T

    return run


def mimo_layer(w: Arrays, embed: np.ndarray, config: dict[str, Any]) -> Layer:
    """Plain norms, a part of each head rotated, values scaled, and a sink in the softmax of each head."""
    count, groups = config["swa_num_attention_heads"], config["swa_num_key_value_heads"]
    dims = int(config["swa_head_dim"] * config["partial_rotary_factor"])
    theta, scale = config["swa_rope_theta"], config["attention_value_scale"]

    def run(hidden: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        x = pair(w, hidden, embed[tokens], plus=0)
        z = rms_norm(x, w["input_layernorm.weight"])
        q, k = heads(z, w["self_attn.q_proj.weight"], count), heads(z, w["self_attn.k_proj.weight"], groups)
        v = heads(z, w["self_attn.v_proj.weight"], groups) * scale
        sinks, window = w["self_attn.attention_sink_bias"], config["sliding_window_size"]
        out = attention(rotated(q, dims, theta), rotated(k, dims, theta), v, window, sinks)
        x = x + out.reshape(len(x), -1) @ w["self_attn.o_proj.weight"].T
        z = rms_norm(x, w["pre_mlp_layernorm.weight"])
        gate = z @ w["mlp.gate_proj.weight"].T
        return x + gate * sigmoid(gate) * (z @ w["mlp.up_proj.weight"].T) @ w["mlp.down_proj.weight"].T

    return run


def step_logits(w: Arrays, rows: np.ndarray) -> np.ndarray:
    """A norm and an output matrix of its own."""
    normed = rms_norm(rows, w["transformer.shared_head.norm.weight"] + 1)
    return normed @ w["transformer.shared_head.output.weight"].T


def mimo_logits(w: Arrays, output: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """A norm of its own, and the trunk's output matrix."""
    return rms_norm(rows, w["final_layernorm.weight"]) @ output.T
