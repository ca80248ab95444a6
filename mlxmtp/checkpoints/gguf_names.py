"""Find the MTP head in a GGUF file, and undo what llama.cpp's converters did to its names and values.

A head is the blocks after the trunk's, of which the first has `nextn` tensors. docs/gguf.md has what the
converters change in each architecture, and their sources.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mlxmtp.checkpoints.gguf_header import GgufHeader
from mlxmtp.checkpoints.tensors import TensorInfo
from mlxmtp.errors import HeadError

_BLOCK = re.compile(r"blk\.(\d{1,6})\.(.+)")
_NEXTN = "nextn."
GATE_UP = "mlp.switch_mlp.gate_up_proj"
"""The name of experts' gates and, after them, up-projections in one tensor; `gguf_values` splits it."""
ROWS = ("mlp.shared_expert_gate.weight",)
"""Matrices of one row, which some converters store as vectors."""

_ATTENTION = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
}
_LATENT = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_q_a": "self_attn.q_a_proj",
    "attn_q_a_norm": "self_attn.q_a_layernorm",
    "attn_q_b": "self_attn.q_b_proj",
    "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
    "attn_kv_a_norm": "self_attn.kv_a_layernorm",
    "attn_kv_b": "self_attn.kv_b_proj",
    # kv_b in two, the keys' half transposed for each head: mlx-lm stores them so, too. Old files may have both
    "attn_k_b": "self_attn.embed_q",
    "attn_v_b": "self_attn.unembed_out",
    "attn_output": "self_attn.o_proj",
}
_INDEXER = {
    "indexer.k_norm": "self_attn.indexer.k_norm",
    "indexer.proj": "self_attn.indexer.weights_proj",
    "indexer.attn_k": "self_attn.indexer.wk",
    "indexer.attn_q_b": "self_attn.indexer.wq_b",
}
_MLP = {f"ffn_{name}": f"mlp.{name}_proj" for name in ("gate", "up", "down")}
_EXPERTS = {f"ffn_{name}_exps": f"mlp.switch_mlp.{name}_proj" for name in ("gate", "up", "down")} | {
    "ffn_gate_up_exps": GATE_UP,
    "ffn_gate_inp": "mlp.gate",
    "exp_probs_b.bias": "mlp.gate.e_score_correction_bias",
}
_SHARED = {f"ffn_{name}_shexp": f"mlp.shared_experts.{name}_proj" for name in ("gate", "up", "down")}
_SHARED_GATED = {f"ffn_{name}_shexp": f"mlp.shared_expert.{name}_proj" for name in ("gate", "up", "down")} | {
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate"
}
_LAYER = {
    "nextn.eh_proj": "eh_proj",
    "nextn.enorm": "enorm",
    "nextn.hnorm": "hnorm",
    "nextn.shared_head_norm": "shared_head.norm",
    "nextn.shared_head_head": "shared_head.head",
    "nextn.embed_tokens": "embed_tokens",
}
_QWEN_OUTSIDE = {
    "nextn.eh_proj": "fc",
    "nextn.enorm": "pre_fc_norm_embedding",
    "nextn.hnorm": "pre_fc_norm_hidden",
    "nextn.shared_head_norm": "norm",
}
_STEP = {
    "attn_gate": "self_attn.g_proj",
    "nextn.shared_head_head": "shared_head.output",
}
_MIMO = {
    "attn_qkv": "self_attn.qkv_proj",
    "attn_sinks.weight": "self_attn.attention_sink_bias",
    "ffn_norm": "pre_mlp_layernorm",
    "nextn.shared_head_norm": "final_layernorm",
    "layer_output_norm": "final_layernorm",
}
_LING = {
    "attn_norm": "input_layernorm",
    "attn_qkv": "attention.query_key_value",
    "attn_output": "attention.dense",
    "attn_q_norm": "attention.query_layernorm",
    "attn_k_norm": "attention.key_layernorm",
}
_LING_LATENT = {name: hf.replace("self_attn.o_proj", "attention.dense") for name, hf in _LATENT.items()}
_LING_LATENT = {name: hf.replace("self_attn.", "attention.") for name, hf in _LING_LATENT.items()}
_LING_LATENT["attn_gate"] = "attention.g_proj"
_LING_EXPERTS = {
    "exp_probs_b.bias": "mlp.gate.expert_bias",
    "nextn.shared_head_norm": "final_layernorm",
    "layer_output_norm": "final_layernorm",
}
_NEMOTRON = {
    "nextn.eh_proj": "layers.0.eh_proj",
    "nextn.enorm": "layers.0.enorm",
    "nextn.hnorm": "layers.0.hnorm",
    "attn_norm": "layers.0.norm",
    "attn_q": "layers.0.mixer.q_proj",
    "attn_k": "layers.0.mixer.k_proj",
    "attn_v": "layers.0.mixer.v_proj",
    "attn_output": "layers.0.mixer.o_proj",
    "ffn_norm": "layers.1.norm",
    "ffn_gate_inp": "layers.1.mixer.gate",
    "exp_probs_b.bias": "layers.1.mixer.gate.e_score_correction_bias",
    "ffn_latent_down": "layers.1.mixer.fc1_latent_proj",
    "ffn_latent_up": "layers.1.mixer.fc2_latent_proj",
    "ffn_up_exps": "layers.1.mixer.switch_mlp.fc1",
    "ffn_down_exps": "layers.1.mixer.switch_mlp.fc2",
    "ffn_up_shexp": "layers.1.mixer.shared_experts.up_proj",
    "ffn_down_shexp": "layers.1.mixer.shared_experts.down_proj",
    "nextn.shared_head_norm": "layers.1.final_layernorm",
}
_FFN_NORM, _POST_NORM = {"ffn_norm": "post_attention_layernorm"}, {"post_attention_norm": "post_attention_layernorm"}
_MLA = _LATENT | _FFN_NORM | _MLP | _EXPERTS | _SHARED | _LAYER
_QWEN = _ATTENTION | _POST_NORM | _FFN_NORM | _MLP  # some conversions name the second norm as other models'
_QWEN_MOE = _QWEN | _EXPERTS | _SHARED_GATED
_LING_MOE = _FFN_NORM | _MLP | _EXPERTS | _SHARED | _LAYER | _LING_EXPERTS


@dataclass(frozen=True)
class Architecture:
    """One of llama.cpp's architectures.

    Args:
        trunks: model types of the trunks whose heads such a file can hold.
        layer: llama.cpp's names in a block, and those inside a layer of the head, without `.weight` and `.bias`; or
            whole names.
        outside: likewise, for tensors of the first block, and names inside the head.
    """

    trunks: tuple[str, ...]
    layer: Mapping[str, str]
    outside: Mapping[str, str]


ARCHITECTURES = {
    "qwen35": Architecture(("qwen3_5",), _QWEN, _QWEN_OUTSIDE),
    "qwen35moe": Architecture(("qwen3_5_moe",), _QWEN_MOE, _QWEN_OUTSIDE),
    "qwen3next": Architecture(("qwen3_next",), _QWEN_MOE, _QWEN_OUTSIDE),
    "glm4moe": Architecture(("glm4_moe",), _ATTENTION | _POST_NORM | _MLP | _EXPERTS | _SHARED | _LAYER, {}),
    "deepseek2": Architecture(("deepseek_v3", "glm4_moe_lite", "joyai_llm_flash"), _MLA, {}),
    "deepseek32": Architecture(("deepseek_v32",), _MLA | _INDEXER, {}),
    "step35": Architecture(("step3p5",), _ATTENTION | _FFN_NORM | _MLP | _LAYER | _STEP, {}),
    "mimo2": Architecture(("mimo_v2_flash",), _ATTENTION | _MLP | _LAYER | _MIMO, {}),
    "glm-dsa": Architecture(("glm_moe_dsa",), _MLA | _INDEXER, {}),
    "exaone-moe": Architecture(("exaone_moe",), _ATTENTION | _FFN_NORM | _MLP, _QWEN_OUTSIDE),
    "bailingmoe2": Architecture(("bailing_moe",), _LING | _LING_MOE, {}),
    "bailingmoe3": Architecture(("bailing_moe_v3", "bailing_hybrid"), _LING_LATENT | _LING_MOE, {}),
    "nemotron_h_moe": Architecture(("nemotron_h",), {}, _NEMOTRON),
}
"""By the name in `general.architecture`."""


def nextn_tensors(header: GgufHeader) -> dict[str, TensorInfo]:
    """Return all tensors of the blocks from the first with `nextn` tensors on; {}: the file has no head."""
    found = {name: (int(match[1]), match[2]) for name in header.tensors if (match := _BLOCK.fullmatch(name))}
    first = min((block for block, rest in found.values() if rest.startswith(_NEXTN)), default=None)
    return {name: header.tensors[name] for name, (block, _) in found.items() if first is not None and block >= first}


def head_names(architecture: str, names: Iterable[str], where: str) -> dict[str, str]:
    """Return the names inside the head of llama.cpp's, for all tensors of a head.

    Args:
        where: the file, for messages.

    Raises:
        HeadError: the architecture or a name is unknown.
    """
    known = ARCHITECTURES.get(architecture)
    if known is None:
        expected = ", ".join(sorted(ARCHITECTURES))
        raise HeadError(f"{where}: heads of the GGUF architecture {architecture!r} are not read; expected {expected}")
    out: dict[str, str] = {}
    matches = {name: match for name in names if (match := _BLOCK.fullmatch(name))}
    first = min(int(match[1]) for match in matches.values())
    for name, match in matches.items():
        short = _short(known, match[2], int(match[1]) - first)
        if short is None:
            raise HeadError(f"{where}: the head has {name}, which no {architecture} head of llama.cpp's layout has")
        out[name] = short
    return out


def first_block(names: Iterable[str]) -> int:
    """Return the number of a head's first block, which is that of the trunk's blocks."""
    return min(int(match[1]) for name in names if (match := _BLOCK.fullmatch(name)))


def _short(known: Architecture, rest: str, layer: int) -> str | None:
    """Return the name inside the head of `rest`, a name inside block `layer` of the head; None: it is unknown."""
    stem, _, kind = rest.rpartition(".")
    if kind not in ("weight", "bias"):
        return None
    if layer == 0 and (outside := _mapped(known.outside, rest, stem)):
        return outside
    inside = _mapped(known.layer, rest, stem)
    return f"layers.{layer}.{inside}" if inside else None


def _mapped(names: Mapping[str, str], rest: str, stem: str) -> str | None:
    """Return our name by the whole name, or by that without its last part, which stays."""
    return names.get(rest) or (names[stem] + rest.removeprefix(stem) if stem in names else None)
