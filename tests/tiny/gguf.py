"""GGUF files in llama.cpp's layout, made from tiny raw checkpoints by the gguf package.

Names come from the package's own tensor maps, and the changes of values from llama.cpp's converters for Qwen, GLM and
DeepSeek: norms with their offset added, experts stacked, kv_b in two parts.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import gguf
import mlx.core as mx
import numpy as np

from tests.tiny.files import load_weights

Arch = gguf.MODEL_ARCH
ARCHITECTURES = {
    "qwen3_5": ("qwen35", Arch.QWEN35),
    "qwen3_5_text": ("qwen35", Arch.QWEN35),
    "qwen3_5_moe": ("qwen35moe", Arch.QWEN35MOE),
    "qwen3_next": ("qwen3next", Arch.QWEN3NEXT),
    "glm4_moe": ("glm4moe", Arch.GLM4_MOE),
    "glm4_moe_lite": ("deepseek2", Arch.DEEPSEEK2),
    "deepseek_v3": ("deepseek2", Arch.DEEPSEEK2),
    "joyai_llm_flash": ("deepseek2", Arch.DEEPSEEK2),
    "deepseek_v32": ("deepseek32", Arch.GLM_DSA),  # the package does not know deepseek32; its blocks are glm-dsa's
    "glm_moe_dsa": ("glm-dsa", Arch.GLM_DSA),
    "step3p5": ("step35", Arch.STEP35),
    "mimo_v2_flash": ("mimo2", Arch.MIMO2),
    "exaone_moe": ("exaone-moe", Arch.EXAONE_MOE),
    "bailing_moe": ("bailingmoe2", Arch.BAILINGMOE2),
    "bailing_moe_v3": ("bailingmoe3", Arch.DEEPSEEK2),  # the package does not know bailingmoe3
    "nemotron_h": ("nemotron_h_moe", Arch.NEMOTRON_H_MOE),
}
"""By model type: the name in the files, and the package's architecture with its names."""
_MTP = {"fc": "eh_proj", "pre_fc_norm_embedding": "enorm", "pre_fc_norm_hidden": "hnorm", "norm": "shared_head.norm"}
_SHIFTED = ("qwen35", "qwen35moe", "qwen3next", "step35")
_OTHERS = (Arch.BAILINGMOE2, Arch.STEP35)
"""Architectures with names that the package lacks for others that have them: `nextn` tensors, the attention's gate."""
_NEMOTRON = {
    "0.enorm": "enorm", "0.hnorm": "hnorm", "0.eh_proj": "eh_proj", "1.norm": "post_attention_layernorm",
    "1.final_layernorm": "shared_head.norm",
}  # fmt: skip

Tensors = dict[str, np.ndarray]


def gguf_file(
    folder: Path,
    dest: Path,
    *,
    kind: str = "F32",
    parts: int = 1,
    trunk: bool = True,
    legacy: bool = False,
    tensors: Mapping[str, np.ndarray | None] = MappingProxyType({}),
    **changes: Any,
) -> Path:
    """Write the head of a raw checkpoint, and a little of its trunk, as a GGUF file; returns the (first) file.

    Args:
        kind: the type of matrices; vectors, and matrices whose rows it does not divide, are float32.
        parts: more than one splits the file.
        trunk: without it, the file has the head, the embedding and the last norm, as `--mtp` makes it.
        legacy: kv_b stays one matrix; a matrix of one row becomes a vector.
        tensors: that are added or replaced; None: left out.
        changes: entries of the metadata that are added or replaced.
    """
    config = json.loads((folder / "config.json").read_text())
    text = config.get("text_config", config)
    name, _ = ARCHITECTURES[_model_type(config)]
    found = llama_cpp_tensors(folder, legacy=legacy)
    wanted = ("token_embd", "output_norm", *(("blk.0.",) if trunk else ()))
    blocks = tuple(f"blk.{i}." for i in range(text["num_hidden_layers"], _blocks(text)))
    kept = {key: value for key, value in found.items() if key.startswith(wanted + blocks)} | dict(tensors)
    kept = {key: value for key, value in kept.items() if value is not None}
    facts = {
        "block_count": _blocks(text), "nextn_predict_layers": _blocks(text) - text["num_hidden_layers"],
        "embedding_length": text["hidden_size"],
        "attention.head_count": text["num_attention_heads"],
        "attention.head_count_kv": text.get("num_key_value_heads", 1),
    }  # fmt: skip
    if "kv_lora_rank" in text:
        facts |= {"attention.kv_lora_rank": text["kv_lora_rank"], "attention.head_count_kv": 1}
    return write_gguf(dest, name, {f"{name}.{key}": value for key, value in facts.items()} | changes, kept, kind, parts)


def write_gguf(
    dest: Path, architecture: str, metadata: Mapping[str, Any], tensors: Tensors, kind: str = "F32", parts: int = 1
) -> Path:
    """Write tensors with the package's writer; returns the (first) file."""
    packed = {name: quantised(values, kind) for name, values in tensors.items()}
    return write_packed(dest, architecture, metadata, packed, parts)


def write_packed(
    dest: Path,
    architecture: str,
    metadata: Mapping[str, Any],
    tensors: Mapping[str, tuple[np.ndarray, gguf.GGMLQuantizationType]],
    parts: int = 1,
) -> Path:
    """As `write_gguf`, of tensors' bytes and types."""
    writer = gguf.GGUFWriter(dest, architecture, split_max_tensors=-(-len(tensors) // parts) if parts > 1 else 0)
    add = {int: writer.add_uint32, str: writer.add_string, float: writer.add_float32, list: writer.add_array}
    for key, value in metadata.items():
        add[type(value)](key, value)
    writer.add_array("tokenizer.ggml.tokens", [f"token {i}" for i in range(288)])
    for name, (values, dtype) in tensors.items():
        writer.add_tensor(name, values, raw_dtype=dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return dest if parts == 1 else dest.with_name(f"{dest.stem}-00001-of-{parts:05}{dest.suffix}")


def quantised(values: np.ndarray, kind: str) -> tuple[np.ndarray, gguf.GGMLQuantizationType]:
    """A tensor's bytes and type as `gguf_file` stores it."""
    dtype = gguf.GGMLQuantizationType[kind]
    if values.ndim == 1 or values.shape[-1] % gguf.GGML_QUANT_SIZES[dtype][0]:
        dtype = gguf.GGMLQuantizationType.F32
    return gguf.quants.quantize(np.ascontiguousarray(values, np.float32), dtype), dtype


def rounded(values: np.ndarray, kind: str) -> np.ndarray:
    """A tensor's values after the quantisation of `gguf_file`, by the package."""
    packed, dtype = quantised(values, kind)
    return gguf.quants.dequantize(packed, dtype).reshape(values.shape)


def llama_cpp_tensors(folder: Path, *, legacy: bool = False) -> Tensors:
    """All tensors of a raw checkpoint that the tensor maps know, under llama.cpp's names, with its values."""
    config = json.loads((folder / "config.json").read_text())
    text = config.get("text_config", config)
    architecture, arch = ARCHITECTURES[_model_type(config)]
    layers = text["num_hidden_layers"]
    maps = [gguf.get_tensor_name_map(one, _blocks(text)) for one in (arch, *_OTHERS)]
    raw = {name: np.array(value.astype(mx.float32)) for name, value in load_weights(folder).items()}
    out: Tensors = {}
    for name, values in _merged({_renamed(name, layers): values for name, values in raw.items()}).items():
        if architecture in _SHIFTED and name.endswith("norm.weight") and "linear_attn" not in name:
            values = values + 1
        for stored, part in _parts(name, values, text, legacy).items():
            found = next((new for one in maps if (new := one.get_name(stored, (".weight", ".bias")))), None)
            if found:
                out[found] = part
    return out


def _model_type(config: dict[str, Any]) -> str:
    """Of Ling-3.0, whose configs may say Ling 2.5's, by its architecture."""
    return "bailing_moe_v3" if "BailingMoeV3ForCausalLM" in config.get("architectures", ()) else config["model_type"]


def _renamed(name: str, layers: int) -> str:
    name = name.replace("model.language_model.", "model.").replace(".expert_bias", ".expert_bias.bias")
    if match := re.fullmatch(r"mtp\.layers\.([01]\.\w+)\.weight", name):
        if match[1] in _NEMOTRON:
            return f"model.layers.{layers}.{_NEMOTRON[match[1]]}.weight"
        name = name.replace("mtp.layers.0.norm", f"backbone.layers.{layers}.norm")
    name = re.sub(r"mtp\.layers\.[01]\.mixer\.", f"backbone.layers.{layers}.mixer.", name)
    name = re.sub(r"backbone\.layers\.(\d+)\.mixer\.experts\.", r"model.layers.\1.mlp.experts.", name)
    name = re.sub(r"\.attention\.(q_a|q_b|kv_|g_proj|q_proj)", r".self_attn.\1", name)
    if match := re.fullmatch(r"mtp\.layers\.0\.(.+)", name):
        return f"model.layers.{layers}.{match[1]}"
    if match := re.fullmatch(r"mtp\.(\w+)\.weight", name):
        return f"model.layers.{layers}.{_MTP[match[1]]}.weight"
    if match := re.fullmatch(r"model\.mtp\.layers\.(\d+)\.(.+)", name):
        name = f"model.layers.{layers + int(match[1])}.{match[2]}"
    if match := re.fullmatch(r"(model\.layers\.\d+\.)transformer\.(.+)", name):
        name = match[1] + match[2].replace("shared_head.output", "shared_head.head")
    name = name.replace("router_bias", "router_bias.bias").replace("sink_bias", "sink_bias.weight")
    return name.replace("e_score_correction_bias", "e_score_correction.bias")


def _blocks(text: dict[str, Any]) -> int:
    """The trunk's layers and the head's."""
    after = 3 if text["model_type"] == "mimo_v2_flash" else text.get("num_nextn_predict_layers", 1)
    return text["num_hidden_layers"] + after  # type: ignore[no-any-return]


def _merged(tensors: Tensors) -> Tensors:
    """Experts stacked, whether they are stored one by one or fused."""
    out: Tensors = {}
    single: dict[str, dict[int, np.ndarray]] = {}
    for name, values in tensors.items():
        if match := re.fullmatch(r"(.+\.experts)\.(\d+)\.(.+)", name):
            single.setdefault(f"{match[1]}.{match[3]}", {})[int(match[2])] = values
        elif name.endswith("experts.gate_up_proj"):
            gates, ups = np.split(values, 2, axis=1)
            stem = name.removesuffix("gate_up_proj")
            out |= {f"{stem}gate_proj.weight": gates, f"{stem}up_proj.weight": ups}
        else:
            out[f"{name}.weight" if name.endswith("experts.down_proj") else name] = values
    return out | {name: np.stack([parts[i] for i in range(len(parts))]) for name, parts in single.items()}


def _parts(name: str, values: np.ndarray, text: dict[str, Any], legacy: bool) -> Tensors:
    if name.endswith("kv_b_proj.weight") and not legacy:
        heads = values.reshape(text["num_attention_heads"], -1, values.shape[-1])
        keys, outs = np.split(heads, [text["qk_nope_head_dim"]], axis=1)
        stem = name.removesuffix("kv_b_proj.weight")
        return {f"{stem}k_b_proj.weight": keys.transpose(0, 2, 1), f"{stem}v_b_proj.weight": outs}
    if name.endswith("shared_expert_gate.weight") and legacy:
        return {name: values[0]}
    return {name: values}
