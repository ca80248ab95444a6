"""Make the golden files of the head-parity tests: tests/goldens/KIND/{config.json,model,expected}.

Each kind has a tiny random checkpoint in raw Hugging Face layout, and the outputs of transformers' torch implementation
for it. The trunk is its `ForCausalLM` class, which reads the files by `from_pretrained`. The head is transformers'
generic `MtpModel` (norms and projection around a decoder layer of the trunk's class), code independent of mlxmtp's.
Every new parameter of that head is filled from the checkpoint. `MtpModel` has no mask for sparse attention, so there
its parts are put together here, around the same decoder layer.

Sparsity is active: SPARSE selects fewer keys than there are tokens. mlx-lm and transformers then agree only while no
two keys tie for the last place, for they break ties differently. A key has the score 0 where the ReLU of every index
head is 0. With 2 index heads, as in other tests, a quarter of the keys have it. With 8, the scores of the last selected
key and of the next one differ by 9e-4 or more.

`expected.safetensors` holds, with S tokens, batch 1 and everything in float32:
    tokens [1, S]; trunk_logits [1, S, V], trunk_hidden [1, S, H] (after the final norm);
    next_tokens_d1 [1, S-1], head_hidden_d1 [1, S-1, H], head_logits_d1 [1, S-1, V]: the rows (h_p, x_{p+1});
    next_tokens_d2 and _d3 [1, 1], head_hidden_*, head_logits_* [1, 1, ..]: the recursion from depth 1's last
    row. Its output (after the head's final norm) is the next hidden state, on the cache that depth 1 filled.
goldens_gemma.py describes Gemma 4, goldens_hybrid.py the trunks with states.

Run in an environment with mlx, mlx-lm, torch==2.13.0 and transformers==5.23.0:
    python scripts/make_goldens.py [--out tests/goldens]
"""

import argparse
import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np

if TYPE_CHECKING:
    import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import goldens_gemma  # noqa: E402
import goldens_hybrid  # noqa: E402

from tests import tiny  # noqa: E402

NEEDED = {"torch": "2.13.0", "transformers": "5.23.0"}
SEED = 20261121
LENGTH = 24
DEPTHS = (1, 2, 3)
KINDS: dict[tiny.Kind, dict[str, Any]] = {
    "qwen3_5": {"tied": True, "mlp": 64},
    "qwen3_5_moe": {},
    "qwen3_next": {},
}
SMALL = {"vocab": 128, "moe_mlp": 16, "value_dim": 16}
SMALL_NEXTN = {"vocab": 128, "moe_mlp": 16, "mlp": 64, "layers": 2}
SPARSE = SMALL_NEXTN | {
    "hidden": 32, "heads": 2, "q_lora": 32, "kv_lora": 32, "nope": 16, "rope": 16, "value": 16,
    "mlp": 32, "moe_mlp": 8, "index_heads": 8, "index_dim": 32, "index_topk": 8,
}  # fmt: skip
SHARED = "_shared"
"""Ends the folder's name of a kind whose layers share indexers."""
NEXTN_KINDS: dict[str, dict[str, Any]] = {
    "glm4_moe": SMALL_NEXTN,
    "glm4_moe_lite": SMALL_NEXTN,
    "deepseek_v3": SMALL_NEXTN,
    "deepseek_v32": SPARSE,
    "glm_moe_dsa": SPARSE,
    "glm_moe_dsa_shared": SPARSE | {"layers": 4, "dense": 2, "indexers": "FFSS"},
}
LAYER_KINDS: dict[str, dict[str, Any]] = {
    "mimo": {},
    "exaone_moe": {},
    "mellum": {},
    "ernie4_5_moe": {"tie_word_embeddings": True},
}
"""Families of one layer (tests/tiny/layers.py), and what their config.json has besides SMALL_LAYER."""
SMALL_LAYER = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "head_dim": 8, "moe_intermediate_size": 16}
MTP_CONFIG: dict[str, dict[str, Any]] = {
    "mimo": {"mtp_hidden_states_first": True},
    "exaone_moe": {"mtp_mlp_layer_types": ["dense"]},
    "mellum": {"mtp_layer_types": ["sliding_attention"]},
    "ernie4_5_moe": {"chain_hidden_post_norm": False},  # no norm after the block
}
"""What `MtpModel` has to be told."""
FED_PRE = ("mimo",)
"""Kinds whose head takes the hidden state before the trunk's final norm; then it is `trunk_hidden`."""
CLASSES = {
    "mimo": "Qwen2",  # transformers has no MiMo: the same layers with another config
    "exaone_moe": "ExaoneMoe",
    "mellum": "Mellum",
    "ernie4_5_moe": "Ernie4_5_Moe",
    "qwen3_5": "Qwen3_5",
    "qwen3_5_moe": "Qwen3_5Moe",
    "qwen3_next": "Qwen3Next",
    "glm4_moe": "Glm4Moe",
    "glm4_moe_lite": "Glm4MoeLite",
    "deepseek_v3": "DeepseekV3",
    "deepseek_v32": "DeepseekV32",
    "glm_moe_dsa": "GlmMoeDsa",
}


def main() -> None:
    """Write the golden folders."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--out", type=Path, default=ROOT / "tests" / "goldens", help="default: %(default)s")
    parser.add_argument("kinds", nargs="*", help="default: all, and Gemma 4")
    out = parser.parse_args().out
    require_oracle()
    write = dict.fromkeys(KINDS, write_checkpoint) | dict.fromkeys(NEXTN_KINDS, write_nextn)
    write |= dict.fromkeys(LAYER_KINDS, write_layer)
    for kind in parser.parse_args().kinds or write:
        folder = out / kind
        arrays = write[kind](folder, kind)
        expected = compute(folder, kind.removesuffix(SHARED), arrays)
        mx.save_safetensors(str(folder / "expected.safetensors"), expected)
        report(folder, expected["head_logits_d1"])
    if parser.parse_args().kinds:
        return
    for name in goldens_hybrid.KINDS:
        report(out / name, goldens_hybrid.write(out / name, SEED)["head_logits_d1"])
    for name in goldens_gemma.PAIRS:
        report(out / name, goldens_gemma.write(out / name, SEED)["head_logits_40"])


def report(folder: Path, logits: mx.array) -> None:
    """Print the size of a folder, and the standard deviation of its logits."""
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"{folder}: {size / 1000:.0f} kB, logits' std {float(logits.std()):.2f}")


def require_oracle() -> None:
    """Exit with an install command if torch or transformers is missing or has another version."""
    for package, wanted in NEEDED.items():
        try:
            found = version(package)
        except PackageNotFoundError:
            found = "none"
        if found.split("+")[0] != wanted:
            pins = " ".join(f"{name}=={v}" for name, v in NEEDED.items())
            sys.exit(f"make_goldens needs {package}=={wanted} (found: {found}). Install: pip install {pins}")


def write_nextn(folder: Path, kind: str) -> tiny.Arrays:
    """Write a float32 GLM or DeepSeek checkpoint, and return its arrays: experts fused, the head's under `mtp.`."""
    sizes = NEXTN_KINDS[kind]
    model_type: Any = kind.removesuffix(SHARED)
    tiny.nextn_checkpoint(folder, model_type, seed=SEED, own="copies", **sizes)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).unlink()
    arrays = {name: np.array(array) for name, array in tiny.load_weights(folder).items()}
    head = f"model.layers.{sizes['layers']}."
    named = {name.replace(head, "mtp."): array for name, array in arrays.items()}
    return fuse_experts(named)


def write_layer(folder: Path, kind: str) -> tiny.Arrays:
    """Write a float32 checkpoint whose head is one layer, and return its arrays as `write_nextn`."""
    tiny.layer_checkpoint(folder, kind, seed=SEED, **SMALL_LAYER, **LAYER_KINDS[kind])
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).unlink()
    arrays = {name: np.array(array) for name, array in tiny.load_weights(folder).items()}
    return fuse_experts({re.sub(r"^model\.mtp[._](layers\.0\.)?", "mtp.", name): a for name, a in arrays.items()})


def fuse_experts(arrays: tiny.Arrays) -> tiny.Arrays:
    """Return the arrays with separate experts fused to transformers' `gate_up_proj` and `down_proj`."""
    out = {name: array for name, array in arrays.items() if ".mlp.experts." not in name}
    for base in {name.partition(".mlp.experts.")[0] for name in arrays.keys() - out.keys()}:
        experts = [f"{base}.mlp.experts.{e}." for e in range(tiny.NextNSizes.experts)]
        gate, up, down = (
            np.stack([arrays[f"{path}{part}_proj.weight"] for path in experts]) for part in ("gate", "up", "down")
        )
        out[f"{base}.mlp.experts.gate_up_proj"] = np.concatenate([gate, up], axis=1)
        out[f"{base}.mlp.experts.down_proj"] = down
    return out


def write_checkpoint(folder: Path, kind: tiny.Kind) -> tiny.Arrays:
    """Write the float32 checkpoint in the layout of the kind's releases, and return its arrays with fused experts."""
    sizes = tiny.Sizes(**(SMALL | KINDS[kind]))
    released = tiny.tensors(kind, sizes, seed=SEED)
    tiny.save_weights(folder, {name: mx.array(a) for name, a in released.items()}, made_by="pt")
    tiny.write_json(folder / "config.json", tiny.config(kind, sizes))
    return tiny.tensors(kind, sizes, seed=SEED, experts="fused")


def compute(folder: Path, kind: str, arrays: tiny.Arrays) -> dict[str, mx.array]:
    """Return the outputs of trunk and head over a fixed random sequence, by transformers."""
    import torch

    torch.manual_seed(SEED)
    vocab = arrays[next(name for name in arrays if name.endswith("embed_tokens.weight"))].shape[0]
    sequence = np.random.default_rng(SEED).integers(3, vocab, (1, LENGTH + len(DEPTHS) - 1))
    tokens, ahead = torch.tensor(sequence[:, :LENGTH]), torch.tensor(sequence[:, LENGTH:])
    trunk = load_trunk(folder, kind)
    with torch.no_grad():
        hidden: list[torch.Tensor] = []
        trunk.model.norm.register_forward_pre_hook(lambda _, rows: hidden.append(rows[0]))
        result = trunk(tokens, output_hidden_states=True)
        fed = hidden[0] if kind in FED_PRE else result.hidden_states[-1]
        found = {"tokens": tokens, "trunk_logits": result.logits, "trunk_hidden": fed}
        found |= head_rows(load_head(trunk, kind, arrays), found["trunk_hidden"], tokens, ahead)
    return {name: mx.array(value.numpy()) for name, value in found.items()}


def load_trunk(folder: Path, kind: str) -> Any:
    """Return transformers' causal language model of the kind, in float32, with plain torch attention."""
    import torch
    import transformers

    cls = getattr(transformers, f"{CLASSES[kind]}ForCausalLM")
    kind_of_config = transformers.Qwen2Config if kind == "mimo" else transformers.AutoConfig
    config = kind_of_config.from_pretrained(folder).get_text_config()
    options: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": "eager"}
    model, info = cls.from_pretrained(folder, config=config, output_loading_info=True, **options)
    if info["missing_keys"] or info["mismatched_keys"]:
        raise ValueError(f"transformers did not find {info} in {folder}")
    return model.eval()


def load_head(trunk: Any, kind: str, arrays: tiny.Arrays) -> Any:
    """Return transformers' `MtpModel` with one layer and every parameter from the checkpoint."""
    import torch
    from transformers.modeling_layers import MtpModel

    trunk.config.num_mtp_layers = 1
    trunk.config.mtp_layer_types = ["indexed_attention" if is_sparse(trunk.config) else "full_attention"]
    sparse = hasattr(trunk.config, "num_experts") or hasattr(trunk.config, "n_routed_experts")
    trunk.config.mtp_mlp_layer_types = ["sparse" if sparse else "dense"]
    for name, value in MTP_CONFIG.get(kind, {}).items():
        setattr(trunk.config, name, value)
    head = MtpModel(trunk, 1).eval()
    names = {
        "mtp.fc.": "eh_proj.",
        "mtp.pre_fc_norm_embedding.": "enorm.",
        "mtp.pre_fc_norm_hidden.": "hnorm.",
        "mtp.norm.": "post_norm.",
        "mtp.layers.0.": "mtp_block.",
        "mtp.eh_proj.": "eh_proj.",
        "mtp.enorm.": "enorm.",
        "mtp.hnorm.": "hnorm.",
        "mtp.shared_head.norm.": "post_norm.",
        "mtp.token_layernorm.": "enorm.",
        "mtp.hidden_layernorm.": "hnorm.",
        "mtp.input_proj.": "eh_proj.",
        "mtp.final_layernorm.": "post_norm.",
        "mtp.emb_norm.0.": "enorm.",
        "mtp.hidden_norm.0.": "hnorm.",
        "mtp.linear_proj.0.": "eh_proj.",
        "mtp.block.0.": "mtp_block.",
        "mtp.self_attn.": "mtp_block.self_attn.",
        "mtp.mlp.": "mtp_block.mlp.",
        "mtp.input_layernorm.": "mtp_block.input_layernorm.",
        "mtp.post_attention_layernorm.": "mtp_block.post_attention_layernorm.",
    }
    state = {
        new + name.removeprefix(old): torch.tensor(value)
        for name, value in arrays.items()
        for old, new in names.items()
        if name.startswith(old)
    }
    head.layers[0].load_state_dict(state, strict=True)
    return head


def is_sparse(config: Any) -> bool:
    """Return whether attention is sparse: only to keys that an indexer selects."""
    return hasattr(config, "index_topk")


def sparse_layer(
    head: Any, rows: "torch.Tensor", positions: "torch.Tensor", cache: Any, following: "torch.Tensor"
) -> "torch.Tensor":
    """Return the output of `MtpModel.forward_layer` for a decoder layer with an indexer."""
    import torch

    layer, before = head.layers[0], cache.get_seq_length()
    x = layer.eh_proj(torch.cat([layer.enorm(head.embed_tokens(following)), layer.hnorm(rows)], dim=-1))
    later = torch.ones(x.shape[1], before + x.shape[1], dtype=torch.bool).triu(before + 1)
    y = layer.mtp_block(
        x,
        attention_mask=torch.zeros(later.shape).masked_fill(later, torch.finfo(x.dtype).min)[None, None],
        position_ids=positions,
        position_embeddings=head.rotary_emb(x, positions),
        past_key_values=cache,
    )
    return layer.post_norm(y[0] if isinstance(y, tuple) else y)  # glm_moe_dsa returns the selected keys, too


def head_rows(
    head: Any, hidden: "torch.Tensor", tokens: "torch.Tensor", ahead: "torch.Tensor"
) -> dict[str, "torch.Tensor"]:
    """Return depth 1 over all rows, then depths 2 and 3 from its last row. The module's docstring has the shapes."""
    import torch
    from transformers.cache_utils import MtpCache

    cache = MtpCache(config=head.config)
    found: dict[str, torch.Tensor] = {}
    rows, following, start = hidden[:, :-1], tokens[:, 1:], 1
    for depth in DEPTHS:
        positions = torch.arange(start, start + rows.shape[1])[None]
        if is_sparse(head.config):
            out = sparse_layer(head, rows, positions, cache, following)
        else:
            out = head.forward_layer(0, rows, positions, cache, input_ids=following)
        found |= {
            f"next_tokens_d{depth}": following,
            f"head_hidden_d{depth}": out,
            f"head_logits_d{depth}": head.shared_head(out),
        }
        start += rows.shape[1]
        rows, following = out[:, -1:], ahead[:, depth - 1 : depth]
    return found


if __name__ == "__main__":
    main()
