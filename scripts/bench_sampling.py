"""What sampling adds to a round: time, operations, sorts and bytes.

    .venv/bin/python scripts/bench_sampling.py [--model PATH] [--depth 3] [--rounds 30] [--settings top-k-p greedy]

Rounds of all settings alternate on one machine in one process, behind the same prompt. A round's time is divided by
that of the greedy round next to it, and the table has the median of these ratios. The counts are those of the graph
that draws a round's drafts from the head's logits and verifies them: `operations` are all that compute, `sorts` all
sorts and partitions, with the largest row that one of them orders, and `bytes` what is written in arrays of at least a
vocabulary's size. Views count nowhere.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import mlx.core as mx

sys.path.insert(0, str(Path(__file__).parents[1]))

from mlxmtp import Engine, load
from mlxmtp.cli import Parser, guarded, options
from mlxmtp.decoding.depth import FixedDepth
from mlxmtp.decoding.draft import MTPChain
from mlxmtp.decoding.loop import generate, never_stop
from mlxmtp.decoding.sampler import Draft, Sampler
from mlxmtp.decoding.sampling import Sampling
from mlxmtp.decoding.sequence import Sequence
from mlxmtp.decoding.stats import Round

SETTINGS: dict[str, Sampling] = {
    "greedy": Sampling(),
    "top-k-p": Sampling(0.7, top_p=0.95, top_k=20),
    "top-k-p seeded": Sampling(0.7, top_p=0.95, top_k=20, seed=1),
    "top-k-p hot": Sampling(1.0, top_p=0.95, top_k=20),
    "top-p": Sampling(0.7, top_p=0.95),
    "plain": Sampling(0.7),
}
VIEWS = {"Broadcast", "ExpandDims", "Flatten", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unflatten", "View"}
"""Primitives that compute nothing."""
SORTS = {"ArgPartition", "ArgSort", "Partition", "Sort"}
WARM = 3
"""Rounds of each setting that are not counted: kernels are compiled in them."""
PROMPT = list(range(10, 40))


@dataclass(frozen=True)
class Counts:
    """Of a round's sampling. largest_sort: elements of a row. nbytes: of arrays of at least V values."""

    operations: int
    sorts: int
    largest_sort: int
    nbytes: int


def count(sampling: Sampling, vocabulary: int, depth: int) -> Counts:
    """Count what a round of `depth` drafts computes from its logits."""

    def a_round(*logits: mx.array) -> list[mx.array]:
        sampler, tokens, distributions = Sampler(sampling), [], []
        for step in range(depth):
            token, q = sampler.draw_draft(logits[step], len(PROMPT), tokens)
            tokens.append(token[:, None])
            distributions += [] if q is None else [q]
        draft = Draft(mx.concatenate(tokens, axis=1), distributions)
        acceptance, finite = sampler.verify(logits[depth], draft, len(PROMPT))
        return [acceptance.accepted, acceptance.token, finite]

    found: list[dict[str, Any]] = []
    rows = [mx.zeros((1, vocabulary))] * depth
    mx.export_function(found.append, a_round, *rows, mx.zeros((1, depth + 1, vocabulary)))
    computed = [one for one in found if one["type"] == "primitive" and one["name"] not in VIEWS]
    written = [(shape, dtype) for one in computed for _, shape, dtype in one["outputs"]]
    sorted_rows = [one["inputs"][0][1][-1] for one in computed if one["name"] in SORTS]
    large = [(mx.zeros(shape, dtype).nbytes) for shape, dtype in written if shape and shape[-1] >= vocabulary]
    return Counts(len(computed), len(sorted_rows), max(sorted_rows, default=0), sum(large))


def rounds(engine: Engine, sequence: Sequence, sampling: Sampling, depth: int) -> Iterator[Round]:
    """Endless rounds after a prefilled sequence."""
    assert engine.mtp
    turn = sequence, Sampler(sampling), FixedDepth(depth), never_stop, 10**6
    return generate(engine.target, MTPChain(engine.mtp), *turn)


def measure(engine: Engine, names: list[str], depth: int, count: int) -> dict[str, list[float]]:
    """Seconds of `count` rounds of each setting, which alternate."""
    sequence = Sequence(engine.target, engine.mtp)
    sequence.prefill(PROMPT)
    sequence.settle()
    running = {name: rounds(engine, sequence.fork(), SETTINGS[name], depth) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(WARM + count):
        for name, found in running.items():
            start = perf_counter()
            next(found)
            if number >= WARM:
                seconds[name].append(perf_counter() - start)
    return seconds


def random_model(folder: Path, args: argparse.Namespace) -> Path:
    """Write a model with a head, of random weights."""
    from tests.tiny import raw_checkpoint

    sizes = {"hidden": args.hidden, "layers": args.layers, "mlp": 3 * args.hidden, "head_dim": args.hidden // 8}
    sizes |= {"heads": 8, "key_dim": 64, "value_dim": 64}
    return raw_checkpoint(folder, "qwen3_5_text", dtype="float32", vocab=args.vocab, tied=True, **sizes)


def main() -> int:
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--model", help="a model's folder or Hub repo (default: random weights)")
    positive = options.at_least(1)
    add("--vocab", type=positive, default=248_320, help="of the random model (default: 248320)")
    add("--hidden", type=positive, default=128, help="of the random model (default: 128)")
    add("--layers", type=positive, default=4, help="of the random model (default: 4)")
    add("--depth", type=positive, default=3, help="drafts a round (default: 3)")
    add("--rounds", type=positive, default=30, help="of each setting (default: 30)")
    add("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS), help="default: all")
    add("--count", action="store_true", help="count only, and time nothing")
    return guarded(lambda: run(parser.parse_args()))


def run(args: argparse.Namespace) -> int:
    names = list(dict.fromkeys(["greedy", *args.settings]))
    seconds: dict[str, list[float]] = {}
    vocabulary = args.vocab
    if not args.count:
        with tempfile.TemporaryDirectory() as folder:
            engine = load(args.model or str(random_model(Path(folder), args)))
            vocabulary = engine.target.vocab_size
            seconds = measure(engine, names, args.depth, args.rounds)
    print(f"V = {vocabulary}, depth {args.depth}, {args.rounds} rounds, load {os.getloadavg()[0]:.1f}")
    print("| setting | ms a round | to greedy | operations | sorts | largest | bytes of V |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name in names:
        times = [""] * 2
        if seconds:
            ratio = median(own / greedy for own, greedy in zip(seconds[name], seconds["greedy"], strict=True))
            times = [f"{1000 * median(seconds[name]):.0f}", f"{ratio:.2f}"]
        one = count(SETTINGS[name], vocabulary, args.depth)
        counts = (f"{n:,}" for n in (one.operations, one.sorts, one.largest_sort, one.nbytes))
        print("|", " | ".join([name, *times, *counts]), "|")
    return 0


if __name__ == "__main__":
    sys.exit(main())
