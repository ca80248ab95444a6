"""Measure the acceptance of a head at 16, 8 and 4 bits on the same texts.

    .venv/bin/python scripts/head_bits.py [--model PATH] [--tokens 200]

Speculative decoding is exact, so a trunk generates the same text with each head, and their acceptance is comparable.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from mlxmtp import Engine, load
from mlxmtp.bench.workloads import load_prompts, select
from mlxmtp.conversion.convert import Quantization, convert
from mlxmtp.decoding.depth import FixedDepth
from mlxmtp.decoding.draft import MTPChain
from mlxmtp.decoding.loop import generate, never_stop
from mlxmtp.decoding.sampler import Sampler
from mlxmtp.decoding.sampling import Sampling
from mlxmtp.decoding.sequence import Sequence
from mlxmtp.decoding.stats import Stats, StatsAccumulator
from mlxmtp.units import size

BITS = (16, 8, 4)
TRUNKS = {"as it is": None, "4 bits": Quantization()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a model's folder or Hub repo; the bundled demo without it")
    parser.add_argument("--tokens", type=int, default=200, help="tokens of each text (default: 200)")
    parser.add_argument("--depth", type=int, default=3, help="drafts a round (default: 3)")
    args = parser.parse_args()
    source = load(args.model).path
    print("| trunk | head | size of the head | accepted at depth 1, 2, ... | tokens a round |")
    print("| --- | --- | ---: | --- | ---: |")
    for trunk, packing in TRUNKS.items():
        texts = set()
        for bits in BITS:
            with tempfile.TemporaryDirectory() as folder:
                done = convert(source, Path(folder, "model"), quantization=packing, head_bits=bits)
                tokens, stats = measure(load(done.folder), args)
            texts.add(tokens)
            accepted = ", ".join(f"{share:.3f}" for share in stats.acceptance_by_depth)
            nbytes, rounds = size(done.head_bytes), f"{stats.tokens_per_round:.2f}"
            print(f"| {trunk} | {bits} bits | {nbytes} | {accepted} | {rounds} |", flush=True)
        assert len(texts) == 1, f"the texts of the trunk {trunk} differ"


def measure(engine: Engine, args: argparse.Namespace) -> tuple[tuple[int, ...], Stats]:
    """Return the tokens, generated past end tokens, and the statistics of their rounds."""
    tokens: list[int] = []
    accumulator = StatsAccumulator(0, 0.0)
    for prompt in select(load_prompts(), (), 1):
        sequence = Sequence(engine.target, engine.mtp)
        sequence.prefill(list(prompt.tokens(engine.tokenizer)))
        turn = sequence, Sampler(Sampling()), FixedDepth(args.depth), never_stop, args.tokens
        for round in generate(engine.target, MTPChain(engine.mtp), *turn):
            accumulator.add(round, 0.0)
            tokens += round.tokens
    return tuple(tokens), accumulator.stats(0)


if __name__ == "__main__":
    main()
