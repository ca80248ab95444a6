"""Make the golden files of Gemma 4 for make_goldens.py.

The folders are tests/goldens/gemma4_STYLE/{target,assistant,expected.safetensors}: a tiny random pair in raw Hugging
Face layout, and the outputs of transformers' `Gemma4ForCausalLM` and `Gemma4AssistantForCausalLM` for it. Both classes
read the files by `from_pretrained`. The drafts are made as `SinglePositionMultiTokenCandidateGenerator` makes them,
with given tokens: every depth has the position after the last token, and attends to the target's keys and values.

The mask of transformers shows the assistant's sliding layers one key more than the window, because it admits a distance
of `sliding_window` from a position after the last key. The target at that position attends to one key less than its
window of the past, and so does mlxmtp's head. The keys and values are therefore cut to the target's view here.

`expected.safetensors`, with S = 12 and 40 tokens (the window is 16), names ending in the number of tokens:
    tokens_S [1, S]; trunk_logits_S [1, S, V]; trunk_hidden_S [1, S, H] (after the final norm);
    next_tokens_S [1, 3]: the input of each depth; head_hidden_S [1, 3, H]: the hidden state for the next depth;
    head_logits_S [1, 3, V].
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import mlx.core as mx
import numpy as np

from tests import tiny

if TYPE_CHECKING:
    import torch

PAIRS: dict[str, tuple[tiny.Style, tiny.GemmaKind]] = {
    "gemma4_e2b": ("E2B", "gemma4"),
    "gemma4_31b": ("31B", "gemma4_text"),
    "gemma4_26b_a4b": ("26B-A4B", "gemma4"),
}
SMALL = {
    "vocab": 48, "hidden": 32, "heads": 2, "head_dim": 16, "global_head_dim": 32, "mlp": 32, "moe_mlp": 8,
    "drafter_hidden": 24,
}  # fmt: skip
LENGTHS = (12, 40)
DEPTHS = 3


def write(folder: Path, seed: int) -> dict[str, mx.array]:
    """Write the pair of a folder of this name with its expected outputs, and return the outputs."""
    style, kind = PAIRS[folder.name]
    target = tiny.gemma_checkpoint(folder / "target", kind, style=style, seed=seed, **SMALL)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (target / file).unlink()
    assistant = tiny.assistant(folder / "assistant", style=style, seed=seed + 1, **SMALL)
    expected = compute(target, assistant, seed)
    mx.save_safetensors(str(folder / "expected.safetensors"), expected)
    return expected


def compute(target: Path, assistant: Path, seed: int) -> dict[str, mx.array]:
    """Return the outputs of trunk and assistant over fixed random tokens, by transformers."""
    import torch

    found: dict[str, torch.Tensor] = {}
    with working_sharing(), torch.no_grad():
        trunk, head = load(target, "Gemma4ForCausalLM"), load(assistant, "Gemma4AssistantForCausalLM")
        for length in LENGTHS:
            given = np.random.default_rng([seed, length]).integers(3, SMALL["vocab"], (1, length + DEPTHS))
            tokens, following = torch.tensor(given[:, :length]), torch.tensor(given[:, length:])
            result = trunk(tokens, output_hidden_states=True, return_shared_kv_states=True, use_cache=False)
            states, logits = drafts(trunk, head, result, following)
            found |= {
                f"tokens_{length}": tokens,
                f"trunk_logits_{length}": result.logits,
                f"trunk_hidden_{length}": result.hidden_states[-1],
                f"next_tokens_{length}": following,
                f"head_hidden_{length}": states,
                f"head_logits_{length}": logits,
            }
    return {name: mx.array(value.numpy()) for name, value in found.items()}


def drafts(trunk: Any, head: Any, result: Any, following: "torch.Tensor") -> tuple["torch.Tensor", "torch.Tensor"]:
    """Return hidden states [1, depths, H] and logits [1, depths, V] after a pass of the target over all its tokens."""
    import torch

    shown = {
        kind: (rows if kind == "full_attention" else [part[:, :, 1 - trunk.config.sliding_window :] for part in rows])
        for kind, rows in result.shared_kv_states.items()
    }
    hidden, position = result.hidden_states[-1][:, -1:], torch.tensor([[result.logits.shape[1]]])
    states, logits = [], []
    for token in following[0]:
        embedding = trunk.get_input_embeddings()(token[None, None])  # scaled already
        inputs = torch.cat([embedding, hidden], dim=-1)
        out = head(inputs_embeds=inputs, position_ids=position, shared_kv_states=shown, use_cache=False)
        hidden = out.last_hidden_state  # after post_projection
        states.append(hidden)
        logits.append(out.logits)
    return torch.cat(states, dim=1), torch.cat(logits, dim=1)


def load(folder: Path, name: str) -> Any:
    """Return a model of transformers with every parameter from the folder, in float32, with plain torch attention."""
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder)
    config = config.get_text_config() if name == "Gemma4ForCausalLM" else config
    options: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": "eager"}
    options["key_mapping"] = {r"^model\.language_model\.": "model."}
    model, info = getattr(transformers, name).from_pretrained(
        folder, config=config, output_loading_info=True, **options
    )
    if any(info[what] for what in ("missing_keys", "mismatched_keys", "unexpected_keys")):
        raise ValueError(f"transformers did not find {info} in {folder}")
    return model.eval()


@contextmanager
def working_sharing() -> Iterator[None]:
    """Repair `kv_sharing_modes` of transformers 5.23 in two cases.

    It raises where all layers share (every assistant), and names no layer to share where none does (31B, 26B-A4B).
    """
    from transformers.models.gemma4.configuration_gemma4 import Gemma4TextConfig

    def modes(config: Any) -> list[str | None]:
        shared = config.num_kv_shared_layers
        own = config.layer_types[: config.num_hidden_layers - shared]
        found: list[str | None] = [None] * len(own) + ["reuse"] * shared
        for i in {kind: i for i, kind in enumerate(own)}.values():  # the last of each type
            found[i] = "store"
        return found

    with mock.patch.object(Gemma4TextConfig, "kv_sharing_modes", property(modes)):
        yield
