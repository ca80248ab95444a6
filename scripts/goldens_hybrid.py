"""Make the golden files of the trunks with states for make_goldens.py: tests/goldens/{nemotron_h,...}.

The trunk is transformers' `ForCausalLM` class. The head is put together from the classes of its layers, code
independent of mlxmtp's: for Ling-3.0 (transformers calls it `bailing_hybrid`, as its configs do) and Kimi Linear around
the decoder layer of `MtpModel`, for Nemotron, of which `MtpModel` makes no head, around its two blocks. No cache is
used: each depth runs the head over all rows before it again. transformers has neither Ling 2.5 nor Kimi K3.

`expected.safetensors` is as make_goldens.py describes it, but for Kimi, whose hidden states are those before a norm:
`trunk_hidden` before the final norm, and `head_hidden_*` before the head's last one, which its logits get.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np

from tests import tiny

if TYPE_CHECKING:
    import torch

SMALL = {
    "vocab": 64, "hidden": 32, "heads": 2, "kv_heads": 1, "head_dim": 16, "mlp": 32, "moe_mlp": 16, "kv_lora": 32,
    "q_lora": 0, "nope": 16, "rope": 16, "value": 16, "state": 16,
}  # fmt: skip
KINDS: dict[tiny.HybridKind, dict[str, Any]] = {
    "nemotron_h": {"pattern": "M-*E", "latent": 16},
    "bailing_moe_v3": {},
    "kimi_linear": {},
}
LENGTH = 24
DEPTHS = (1, 2, 3)
LAST_NORMS = {"bailing_moe_v3": "final_layernorm", "kimi_linear": "shared_head.norm"}


def write(folder: Path, seed: int) -> dict[str, mx.array]:
    """Write the checkpoint of a folder of this name with its expected outputs, and return the outputs."""
    import torch

    kind: Any = folder.name
    tiny.hybrid_checkpoint(folder, kind, seed=seed, **SMALL, **KINDS[kind])
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).unlink()
    torch.manual_seed(seed)
    sequence = np.random.default_rng(seed).integers(3, SMALL["vocab"], (1, LENGTH + len(DEPTHS) - 1))
    with torch.no_grad():
        found = compute(kind, folder, torch.tensor(sequence))
    expected = {name: mx.array(value.numpy()) for name, value in found.items()}
    mx.save_safetensors(str(folder / "expected.safetensors"), expected)
    return expected


def compute(kind: tiny.HybridKind, folder: Path, sequence: "torch.Tensor") -> dict[str, "torch.Tensor"]:
    """Return the outputs of trunk and head over the sequence, the last tokens of which only the head reads."""
    import torch

    trunk, tokens, ahead = load_trunk(folder), sequence[:, :LENGTH], sequence[:, LENGTH:]
    inputs: list[torch.Tensor] = []
    norm = getattr(trunk.model, "norm_f" if kind == "nemotron_h" else "norm")
    norm.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    pair, block, last = load_head(kind, trunk, folder)
    result = trunk(tokens, output_hidden_states=True)
    pre = kind == "kimi_linear"
    hidden = inputs[0] if pre else norm(inputs[0])
    found = {"tokens": tokens, "trunk_logits": result.logits, "trunk_hidden": hidden}
    rows = hidden[:, :-1]
    for depth in DEPTHS:
        following = torch.cat([tokens[:, 1:], ahead[:, : depth - 1]], dim=1)
        y = block(pair(trunk.get_input_embeddings()(following), rows))
        out = (y if pre else last(y)) if depth == 1 else (y if pre else last(y))[:, -1:]
        found |= {
            f"next_tokens_d{depth}": following if depth == 1 else following[:, -1:],
            f"head_hidden_d{depth}": out,
            f"head_logits_d{depth}": trunk.lm_head(last(out) if pre else out),
        }
        rows = torch.cat([rows, out[:, -1:]], dim=1)
    return found


def load_trunk(folder: Path) -> Any:
    """Return transformers' causal language model in float32, with plain torch attention."""
    import torch
    import transformers

    options: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": "eager", "output_loading_info": True}
    model, info = transformers.AutoModelForCausalLM.from_pretrained(folder, **options)
    if info["missing_keys"] or info["mismatched_keys"]:
        raise ValueError(f"transformers did not find {info} in {folder}")
    return model.eval()


def load_head(kind: tiny.HybridKind, trunk: Any, folder: Path) -> tuple[Callable[..., Any], Callable[..., Any], Any]:
    """Return the projection of the pair, the block over all rows, and the last norm, with the checkpoint's weights."""
    import torch

    arrays = {name: torch.tensor(np.array(array)) for name, array in tiny.load_weights(folder).items()}
    config = trunk.config
    if kind == "nemotron_h":
        arrays = {name.removeprefix("mtp.layers."): array for name, array in arrays.items() if name.startswith("mtp.")}
        kinds = config.layers_block_type
        blocks = [type(trunk.model.layers[0])(config, kinds.index(part)) for part in ("full_attention", "moe")]
        norms = [type(trunk.model.norm_f)(config.hidden_size, eps=config.layer_norm_epsilon) for _ in range(3)]
        for i, block in enumerate(blocks):
            names = (f"{i}.norm.", f"{i}.mixer.")
            own = {name[2:]: array for name, array in arrays.items() if name.startswith(names)}
            block.load_state_dict(fused(own), strict=True)
        norm_names = ("0.enorm", "0.hnorm", "1.final_layernorm")
        weight, project = arrays["0.eh_proj.weight"], torch.nn.functional.linear
    else:
        from transformers.modeling_layers import MtpModel

        prefix = f"model.layers.{config.num_hidden_layers}."
        arrays = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
        config.num_mtp_layers, config.mtp_layer_types, config.mtp_mlp_layer_types = 1, ["full_attention"], ["sparse"]
        layer = MtpModel(trunk, 1).layers[0]
        blocks, norms = [layer.mtp_block], [layer.enorm, layer.hnorm, layer.post_norm]
        norm_names = ("enorm", "hnorm", LAST_NORMS[kind])
        outside = (*norm_names, "eh_proj")
        own = {name: array for name, array in arrays.items() if not name.startswith(outside)}
        blocks[0].load_state_dict(fused(own), strict=True)
        weight, project = arrays["eh_proj.weight"], torch.nn.functional.linear
    for norm, name in zip(norms, norm_names, strict=True):
        norm.load_state_dict({"weight": arrays[f"{name}.weight"]})
    enorm, hnorm, last = norms

    def pair(embeddings: Any, hidden: Any) -> Any:
        return project(torch.cat([enorm(embeddings), hnorm(hidden)], dim=-1), weight)

    def run(x: Any) -> Any:
        length = x.shape[1]
        later = torch.ones(length, length, dtype=torch.bool).triu(1)
        mask = torch.zeros(length, length).masked_fill(later, torch.finfo(x.dtype).min)[None, None]
        positions = torch.arange(length)[None]
        rope = getattr(trunk.model, "rotary_emb", None)
        options = {} if rope is None else {"position_embeddings": rope(x, positions)}
        for block in blocks:
            x = block.eval()(x, attention_mask=mask, position_ids=positions, **options)
        return x

    return pair, run, last.eval()


def fused(arrays: dict[str, Any]) -> dict[str, Any]:
    """Return a layer's tensors by transformers' names, its experts in one tensor each."""
    import torch

    renamed = [
        (r"^attention\.dense\.", "self_attn.o_proj."),
        (r"^attention\.", "self_attn."),
        (r"^block_sparse_moe\.", "mlp."),
        (r"expert_bias$", "e_score_correction_bias"),
        (r"\.w1\.", ".gate_proj."),
        (r"\.w3\.", ".up_proj."),
        (r"\.w2\.", ".down_proj."),
    ]
    out: dict[str, Any] = {}
    stacks: dict[str, dict[int, Any]] = {}
    for stored, array in arrays.items():
        name = stored
        for pattern, new in renamed:
            name = re.sub(pattern, new, name)
        if expert := re.fullmatch(r"(.+\.experts\.)(\d+)\.(\w+)_proj\.weight", name):
            stacks.setdefault(expert[1] + expert[3], {})[int(expert[2])] = array
        else:
            out[name] = array
    joined = {name: torch.stack([stack[e] for e in sorted(stack)]) for name, stack in stacks.items()}
    for name in [name for name in joined if name.endswith(".gate")]:
        base = name.removesuffix("gate")
        joined[f"{base}gate_up"] = torch.cat([joined.pop(name), joined.pop(f"{base}up")], dim=1)
    return out | {f"{name}_proj": array for name, array in joined.items()}
