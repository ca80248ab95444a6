"""Train the tiny checkpoints of the acceptance tests: tests/trained/KIND, one for each family, in minutes on two cores.

A byte-level model of three to six small layers and its head learn school mathematics (GSM8K, MIT licence) together. The
head learns from the trunk's hidden states at depths 1 to 3; each depth gets the next hidden state of the one before.
Of a head with several layers, each depth is a layer's.
The tests show with them that a trained head drafts better than chance at every depth. Random weights cannot show that.

    pip install -e '.[cpu]'
    python scripts/train_tiny.py --corpus gsm8k_train.jsonl [KIND ...] [--steps 400]
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from mlxmtp import Engine, load  # noqa: E402
from mlxmtp.conversion.attach import attach  # noqa: E402
from mlxmtp.conversion.convert import Quantization, convert  # noqa: E402
from mlxmtp.heads import Head  # noqa: E402
from mlxmtp.heads.several import SeveralLayers  # noqa: E402
from tests import tiny  # noqa: E402

CORPUS = ROOT / "build" / "corpora" / "gsm8k_train.jsonl"
DEPTHS = 3
"""Depths at which the head is trained."""
LENGTH, ROWS = 96, 8
"""Tokens of a row, and rows of a step."""
RATE, WARM = 4e-3, 20
"""Peak learning rate, and steps of its linear warm-up."""
HELD_OUT = 24
"""Examples that are not trained on. They are written to the folder of the checkpoints for the tests."""
KINDS: dict[str, dict[str, Any]] = {
    "gemma4": {"style": "E2B", "window": 32, "clusters": 24, "looked_into": 8, "drafter_hidden": 64},
    "glm4_moe": {},
    "deepseek_v3": {},
    "deepseek_v32": {"index_topk": 32},
    "step3p5": {"window": 32},
    "mimo_v2_flash": {"window": 32},
}


def main() -> None:
    """Train and write."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument(
        "kinds", nargs="*", choices=[*KINDS, []], metavar="KIND", help=f"of {', '.join(KINDS)}; default: all"
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=400,
        help="default: %(default)s; deepseek_v32 had 800, step3p5 and mimo_v2_flash 250",
    )
    parser.add_argument("--corpus", type=Path, default=CORPUS, help="gsm8k_train.jsonl")
    parser.add_argument("--out", type=Path, default=ROOT / "tests" / "trained", help="default: %(default)s")
    options = parser.parse_args()
    texts = examples(options.corpus)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "held_out.txt").write_text("".join(texts[:HELD_OUT]))
    for kind in options.kinds or KINDS:
        with tempfile.TemporaryDirectory() as scratch:
            folder = untrained(kind, Path(scratch))
            engine = load(folder)
            train(kind, engine, batches(engine, "".join(texts[HELD_OUT:])), options.steps)
            save(engine, folder)
            dest = options.out / kind
            shutil.rmtree(dest, ignore_errors=True)
            convert(folder, dest, quantization=Quantization(bits=8, group_size=32), head_bits=8)
            print(f"{dest}: {sum(file.stat().st_size for file in dest.iterdir()) / 1000:.0f} kB")


def examples(corpus: Path) -> list[str]:
    """Return GSM8K's questions, each with its answer."""
    if not corpus.is_file():
        sys.exit(f"train_tiny needs {corpus}: GSM8K's gsm8k_train.jsonl; name yours with --corpus")
    lines = [json.loads(line) for line in corpus.read_text().splitlines()]
    return [f"{one['question']}\n{one['answer']}\n\n" for one in lines]


def untrained(kind: str, scratch: Path) -> Path:
    """Write a random checkpoint with its head in MLX layout, and return its folder."""
    options = KINDS[kind]
    if kind != "gemma4":
        write = tiny.several_checkpoint if kind in tiny.SEVERAL_KINDS else tiny.nextn_checkpoint
        return convert(write(scratch / "raw", kind, **options), scratch / kind).folder
    folder = convert(tiny.gemma_checkpoint(scratch / "raw", **options), scratch / kind).folder
    attach(folder, str(tiny.assistant(scratch / "assistant", **options)))
    return folder


def batches(engine: Engine, text: str) -> Iterator[mx.array]:
    """Yield batches [ROWS, LENGTH] of the text, cut at random positions."""
    tokens = np.array(engine.tokenizer.encode(text, verbose=False))
    rng = np.random.default_rng(0)
    while True:
        starts = rng.integers(0, len(tokens) - LENGTH, ROWS)
        yield mx.array(np.stack([tokens[start : start + LENGTH] for start in starts]))


class Pair(nn.Module):
    """Trunk and head as one module."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self.trunk, self.head = engine.target.model, engine.mtp
        self._target = engine.target
        self.head.freeze(keys=["token_ordering"])

    def losses(self, ids: mx.array) -> list[mx.array]:
        """Return the cross-entropies of the trunk, and of the head at each depth."""
        cache = self._target.make_cache()
        logits, hidden = self._target.forward(ids, cache)
        found = [cross_entropy(logits, ids, 1)]
        for depth, head in enumerate(self._heads, start=1):
            following = mx.concatenate([ids[:, depth:], mx.zeros_like(ids[:, :depth])], axis=1)
            states = head(hidden, following, head.make_cache(cache))
            found.append(head_loss(head, states, ids, depth + 1))
            if getattr(head.convention, "layers", "") != "target":
                hidden = head.next_hidden(states)
        return found

    @property
    def _heads(self) -> Sequence[Head]:
        """The head of each depth."""
        return self.head.in_turn if isinstance(self.head, SeveralLayers) else [self.head] * DEPTHS


def head_loss(head: Any, states: mx.array, ids: mx.array, ahead: int) -> mx.array:
    """Return the cross-entropy of a head. One with clusters adds that of the clusters."""
    if getattr(head, "masked_embedding", None) is None:
        return cross_entropy(head.logits(states), ids, ahead)
    order, count = head.masked_embedding.token_ordering, head.masked_embedding.centroids.weight.shape[0]
    cluster = mx.argsort(order) // (order.size // count)
    scores = head.masked_embedding.centroids(states)
    return cross_entropy(head.model.embed_tokens.as_linear(states), ids, ahead) + cross_entropy(
        scores, cluster[ids], ahead
    )


def cross_entropy(logits: mx.array, ids: mx.array, ahead: int) -> mx.array:
    return nn.losses.cross_entropy(logits[:, :-ahead].astype(mx.float32), ids[:, ahead:], reduction="mean")


def train(kind: str, engine: Engine, data: Iterator[mx.array], steps: int) -> None:
    """Train trunk and head for some steps."""
    pair = Pair(engine)
    pair.train()
    optimizer = optim.AdamW(optim.join_schedules(
        [optim.linear_schedule(0.0, RATE, WARM), optim.cosine_decay(RATE, steps - WARM, RATE / 20)], [WARM]
    ))  # fmt: skip
    step = nn.value_and_grad(pair, lambda ids: sum(pair.losses(ids)))
    start = time.monotonic()
    for number in range(1, steps + 1):
        ids = next(data)
        loss, gradients = step(ids)
        gradients, _ = optim.clip_grad_norm(gradients, 1.0)
        optimizer.update(pair, gradients)
        mx.eval(pair.parameters(), optimizer.state, loss)
        if number % 100 == 0 or number == steps:
            losses = ", ".join(f"{float(loss):.2f}" for loss in pair.losses(ids))
            print(f"{kind} {number}/{steps}, {time.monotonic() - start:.0f} s: {losses}", flush=True)


def save(engine: Engine, folder: Path) -> None:
    """Write the trained weights over the random ones."""
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(engine.target.model.parameters())))
    head = {f"mtp.{name}": weight for name, weight in tree_flatten(engine.mtp.parameters())}
    mx.save_safetensors(str(folder / "mtp.safetensors"), head)


if __name__ == "__main__":
    main()
