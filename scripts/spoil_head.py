"""Copy a model with a head whose drafts are useless, to test that `--depth auto` is not slower with it.

.venv/bin/python scripts/spoil_head.py random OUT     # random weights of the same standard deviation
.venv/bin/python scripts/spoil_head.py biased OUT     # no weight on the trunk's hidden state, only on the token
.venv/bin/python scripts/spoil_head.py wrong OUT      # the least likely token first
mlxmtp bench --model OUT
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import mlx.core as mx

from mlxmtp.checkpoints.checkpoint import DEMO

KINDS = ("random", "biased", "wrong")
HEAD = "mtp."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("out", type=Path, help="a folder that is not there yet")
    parser.add_argument("--model", type=Path, default=DEMO, help="a folder with the head in it (default: the demo)")
    args = parser.parse_args()
    shutil.copytree(args.model, args.out)
    mx.random.seed(0)
    for path in args.out.glob("*.safetensors"):
        weights = mx.load(str(path))
        mx.eval(weights)  # mx.load is lazy, and the file is overwritten below
        weights |= {name: spoilt(args.kind, name, w) for name, w in weights.items() if name.startswith(HEAD)}
        mx.save_safetensors(str(path), weights, {"format": "mlx"})


def spoilt(kind: str, name: str, weight: mx.array) -> mx.array:
    """Return the replacement of one of the head's tensors."""
    if kind == "random" and weight.ndim > 1:
        return (mx.random.normal(weight.shape) * mx.std(weight.astype(mx.float32))).astype(weight.dtype)
    if kind == "biased" and name == f"{HEAD}fc.weight":  # [H, 2 H]: of the embedding, then of the hidden state
        return mx.concatenate([weight[:, : weight.shape[0]], mx.zeros_like(weight[:, weight.shape[0] :])], axis=1)
    if kind == "wrong" and name == f"{HEAD}norm.weight":  # stored without its offset of 1
        return -2.0 - weight
    return weight


if __name__ == "__main__":
    main()
