"""Compares two folders: their files, the weights that they load as, and the tokens that they generate."""

from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from mlxmtp import GenerationOptions, load
from mlxmtp.checkpoints import open_checkpoint
from mlxmtp.heads import load_head
from mlxmtp.targets import load_target

Weights = dict[str, mx.array]
Turn = tuple[list[int], int, int]


def contents(folder: str | Path) -> dict[str, bytes]:
    """Return the bytes of every file below a folder, by its relative path."""
    return {
        file.relative_to(folder).as_posix(): file.read_bytes() for file in Path(folder).rglob("*") if file.is_file()
    }


def trunk_of(folder: str | Path) -> Weights:
    return dict(tree_flatten(load_target(open_checkpoint(folder)).model.parameters()))


def head_of(folder: str | Path) -> Weights:
    return dict(tree_flatten(_head(folder).parameters()))


def unpacked_head_of(folder: str | Path) -> Weights:
    """Return the head's weights, those of packed layers dequantised."""
    head = _head(folder)
    out = dict(tree_flatten(head.parameters()))
    dtype = next(value.dtype for name, value in out.items() if name.endswith("norm.weight"))
    for path, layer in head.named_modules():
        if hasattr(layer, "bits"):
            packed = [out.pop(f"{path}.{part}", None) for part in ("weight", "scales", "biases")]
            whole = mx.dequantize(*packed, group_size=layer.group_size, bits=layer.bits, mode=layer.mode)
            out[f"{path}.weight"] = whole.astype(dtype)
    return out


def assert_equal(one: Weights, other: Weights) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert value.dtype == other[name].dtype, name
        assert mx.array_equal(value, other[name]), name


def turn(folder: str | Path, *, depth: int = 3) -> Turn:
    """Return greedy tokens, and how many drafts were made and accepted."""
    result = load(folder).generate([5, 9, 3], GenerationOptions(max_tokens=16, depth=depth))
    return result.tokens, result.stats.drafted, result.stats.accepted


def assert_exact(folder: str | Path) -> None:
    """Assert that there were drafts, and that the tokens are those of plain decoding."""
    tokens, drafted, _ = turn(folder)
    assert drafted > 0
    assert tokens == turn(folder, depth=0)[0]


def _head(folder: str | Path) -> Any:
    checkpoint = open_checkpoint(folder)
    return load_head(checkpoint, load_target(checkpoint))
