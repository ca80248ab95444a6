"""Write the checkpoint in raw Hugging Face layout (bf16), as Qwen publishes it, with a model card."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path

import torch
from demo_training.model import DemoModel
from demo_training.tokens import END_OF_TEXT, IM_END
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerFast

TEXT_FIELDS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps",
    "use_cache", "tie_word_embeddings", "rope_parameters", "attention_bias", "attention_dropout", "head_dim",
    "linear_conv_kernel_dim", "linear_key_head_dim", "linear_value_head_dim", "linear_num_key_heads",
    "linear_num_value_heads", "layer_types", "pad_token_id", "bos_token_id", "eos_token_id",
)  # fmt: skip


def export(model: DemoModel, tokenizer: PreTrainedTokenizerFast, out: Path, card: str) -> None:
    out.mkdir(parents=True, exist_ok=True)
    weights = out / "model.safetensors"
    save_file(raw_tensors(model), weights, metadata={"format": "pt"})
    weights.chmod(0o644)  # safetensors gives read permission to the owner only
    stops = tokenizer.convert_tokens_to_ids([IM_END, END_OF_TEXT])
    write_json(out / "config.json", checkpoint_config(model, stops))
    generation = {"eos_token_id": stops, "bos_token_id": stops[1], "do_sample": False}
    write_json(out / "generation_config.json", generation)
    (out / "tokenizer.json").write_text(tokenizer.backend_tokenizer.to_str(pretty=False), encoding="utf-8")
    write_json(out / "tokenizer_config.json", tokenizer_config(tokenizer))
    (out / "README.md").write_text(card, encoding="utf-8")


def raw_tensors(model: DemoModel) -> dict[str, torch.Tensor]:
    """Return the tensors by their published names: the trunk under model.language_model, the head under mtp."""
    tensors = {}
    for name, tensor in model.trunk.model.state_dict().items():
        tensors[f"model.language_model.{name}"] = tensor
    for name, tensor in model.mtp.state_dict().items():
        tensors[f"mtp.{name}"] = tensor
    return {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in tensors.items()}


def round_to_bf16(model: DemoModel) -> None:
    """Round the weights to bf16, so that the final evaluation is that of the written checkpoint."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(torch.bfloat16))


def checkpoint_config(model: DemoModel, stops: list[int]) -> dict[str, object]:
    fields = model.config.to_dict()
    text = {name: fields[name] for name in TEXT_FIELDS}
    text |= {"model_type": "qwen3_5_text", "mtp_num_hidden_layers": 1, "mtp_use_dedicated_embeddings": False}
    return {
        "architectures": ["Qwen3_5ForConditionalGeneration"],
        "model_type": "qwen3_5",
        "text_config": text | {"full_attention_interval": 4},
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "eos_token_id": stops,
    }


def tokenizer_config(tokenizer: PreTrainedTokenizerFast) -> dict[str, object]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": IM_END,
        "pad_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
        "model_max_length": tokenizer.model_max_length,
        "chat_template": tokenizer.chat_template,
    }


def write_json(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


HELD_OUT = (
    "14 standard library modules and their documented functions, the last 200 GSM8K questions, and every "
    "20th conversation of the other two corpora"
)


def model_card(**facts: object) -> str:
    """Return the model card. `facts` are the placeholders of model_card.md that are not filled in here."""
    return (
        (Path(__file__).parent / "model_card.md")
        .read_text(encoding="utf-8")
        .format(
            cpus=os.cpu_count(),
            machine=platform.machine(),
            python=".".join(platform.python_version_tuple()[:2]),
            held_out=HELD_OUT,
            **facts,
        )
    )
