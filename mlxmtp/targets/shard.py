"""Keep one rank's part of a trunk's layers, as mlx-lm's models divide themselves; the output matrix stays whole."""

from typing import Any

from mlxmtp.errors import CheckpointError

KEY_HEADS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads", "num_k_heads", "num_v_heads")
HEADS = (*KEY_HEADS, "num_attention_heads", "num_heads", "n_heads")
"""What mlx-lm's layers call their numbers of heads. `shard` divides them without a look at the remainder."""


def shard(model: Any, group: Any, model_type: str) -> None:
    """Keep this rank's part of each layer's matrices and heads. The arrays may be lazy.

    Each rank draws drafts and verifies them by itself, so that each needs all logits, and heads and their narrowed
    vocabularies read rows of the output matrix: it stays whole, where mlx-lm would divide it.

    Raises:
        CheckpointError: mlx-lm does not divide this model, or not by this number of ranks.
    """
    size = group.size()
    if not hasattr(model, "shard"):
        raise CheckpointError(f"mlx-lm cannot divide {model_type!r} among ranks; leave out --hosts and -n")
    for name, heads in _heads(model):
        if heads % size:
            expected = f"a number of ranks that divides {name} {heads}"
            raise CheckpointError(f"{model_type!r} cannot be divided among {size} ranks; expected {expected}")
    wholes = [(module, module.lm_head) for module in model.modules() if "lm_head" in module]
    model.shard(group)
    for module, whole in wholes:
        module.lm_head = whole
        if getattr(module, "sharding_group", None) is not None:
            module.sharding_group = None


def _heads(model: Any) -> list[tuple[str, int]]:
    """Return names and numbers of heads of all layers' modules, each pair once, the smallest first."""
    found = {(name, getattr(module, name, None)) for module in model.modules() for name in HEADS}
    return sorted(((name, heads) for name, heads in found if isinstance(heads, int)), key=lambda pair: pair[::-1])
