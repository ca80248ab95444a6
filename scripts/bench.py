"""Decoding speed against mlx-lm's plain decoding, and a round's time against its floor, in one interleaved run.

    .venv/bin/python scripts/bench.py speed [--model PATH] [--prompts FILE --workload math]
    .venv/bin/python scripts/bench.py floor [--model PATH] [--depth 3]

`speed` runs every arm once a repeat, in turn, greedy and past end tokens, and prints medians with their spread.
`floor` stops after every round and measures, on the same state, what the round could not do without: the verify
pass, the drafts, and the feeding of the head's true rows, each evaluated alone.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import mlx.core as mx
from mlx_lm.generate import generate_step

from mlxmtp import Engine, Sampling, load
from mlxmtp.chat.prompt import encode
from mlxmtp.decoding.depth import FixedDepth
from mlxmtp.decoding.drafters import MTPChain
from mlxmtp.decoding.loop import Kept, decode_plainly, speculate
from mlxmtp.decoding.sequence import Sequence
from mlxmtp.decoding.stats import Round
from mlxmtp.decoding.verifier import Verifier

PROMPTS = {
    "tools": [
        "Hi, I'd like a large latte with oat milk, please.",
        "I will have a Cappuccino.",
        "Can I get two double espressos to go?",
    ],
    "repeated code": [
        "def add_one(x):\n    return x + 1\n\n\ndef add_two(x):\n    return x + 2\n\n\ndef add_three(x):\n",
        "    self.a = a\n    self.b = b\n    self.c = c\n    self.d = d\n    self.e = e\n",
        'assert f(1) == "1"\nassert f(2) == "2"\nassert f(3) == "3"\nassert f(4) == "4"\n',
    ],
}
RAW = {"repeated code"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("speed", "floor"))
    parser.add_argument("--model", help="a model's folder or Hub repo; the bundled demo without it")
    parser.add_argument("--prompts", type=Path, help="JSON lines with `workload` and `turns`")
    parser.add_argument(
        "--workload", action="append", help="only these workloads of --prompts, or of the built-in ones"
    )
    parser.add_argument("--limit", type=int, default=6, help="prompts of a workload (default: 6)")
    parser.add_argument("--tokens", type=int, default=200, help="tokens to generate (default: 200)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each arm and prompt (default: 3)")
    parser.add_argument("--depths", type=int, nargs="+", default=[1, 2, 3, 4], help="depths to try")
    args = parser.parse_args()
    engine = load(args.model)
    print(f"{engine.name}, MLX {mx.__version__} on {mx.default_device()}, {platform.machine()}, {platform.system()}")
    for workload, prompts in workloads(args).items():
        tokens = [encode(engine.tokenizer, text, raw=workload in RAW) for text in prompts]
        (speed if args.what == "speed" else floor)(engine, workload, tokens, args)


def workloads(args: argparse.Namespace) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {} if args.prompts else dict(PROMPTS)
    for line in args.prompts.read_text().splitlines() if args.prompts else ():
        row = json.loads(line)
        found.setdefault(row["workload"], []).append(row["turns"][0])
    wanted = args.workload or list(found)
    return {name: found[name][: args.limit] for name in wanted}


def speed(engine: Engine, workload: str, prompts: list[list[int]], args: argparse.Namespace) -> None:
    arms: dict[str, Callable[[list[int]], Run]] = {"mlx-lm": lambda ids: run_mlx_lm(engine, ids, args.tokens)}
    for depth in [0, *args.depths]:
        arms["plain" if depth == 0 else f"depth {depth}"] = lambda ids, d=depth: run_ours(engine, ids, args.tokens, d)
    for arm in arms.values():
        arm(prompts[0])  # compiles
    rates: dict[str, list[list[float]]] = {name: [] for name in arms}
    rounds: dict[str, list[float]] = {name: [] for name in arms}
    for ids in prompts:
        runs = [{name: arm(ids) for name, arm in arms.items()} for _ in range(args.repeats)]
        for name in arms:
            assert runs[0][name].tokens == runs[0]["mlx-lm"].tokens, f"{name} differs from mlx-lm"
            rates[name].append([run[name].rate for run in runs])
            rounds[name].append(runs[0][name].tokens_per_round)
    print(f"\n{workload}: {len(prompts)} prompts, {args.tokens} tokens, {args.repeats} repeats; ratios to mlx-lm")
    for name in arms:
        ratios = [
            a / b
            for mine, base in zip(rates[name], rates["mlx-lm"], strict=True)
            for a, b in zip(mine, base, strict=True)
        ]
        print(
            f"  {name:8} {statistics.median(rate for runs in rates[name] for rate in runs):7.1f} tok/s   "
            f"{statistics.median(ratios):5.2f} x  ({min(ratios):.2f} to {max(ratios):.2f})   "
            f"{statistics.mean(rounds[name]):.2f} tokens a round"
        )


class Run:
    """Tokens with the times at which they came, the first group apart: it pays for the prompt."""

    def __init__(self, groups: Iterator[list[int]]) -> None:
        self.tokens = list(next(groups))
        skipped, start, count = len(self.tokens), time.perf_counter(), 1
        for group in groups:
            self.tokens += group
            count += 1
        self.rate = (len(self.tokens) - skipped) / (time.perf_counter() - start)
        self.tokens_per_round = len(self.tokens) / count


def run_mlx_lm(engine: Engine, ids: list[int], tokens: int) -> Run:
    return Run([token] for token, _ in generate_step(mx.array(ids), engine.target.model, max_tokens=tokens))


def run_ours(engine: Engine, ids: list[int], tokens: int, depth: int) -> Run:
    sequence = Sequence(engine.target, engine.mtp if depth else None)
    sequence.prefill(ids)
    return Run(list(one.tokens) for one in rounds_of(engine, sequence, tokens, depth))


def rounds_of(engine: Engine, sequence: Sequence, tokens: int, depth: int) -> Iterator[Round]:
    law, everything = Verifier(Sampling()), lambda group: Kept(len(group), None)
    if not depth or not engine.mtp:
        return decode_plainly(engine.target, sequence, law, everything, tokens)
    drafter, policy = MTPChain(engine.mtp), FixedDepth(depth)
    return speculate(engine.target, drafter, sequence, law, policy, everything, tokens)


def floor(engine: Engine, workload: str, prompts: list[list[int]], args: argparse.Namespace) -> None:
    print(f"\n{workload}: medians of a round, ms")
    for depth in args.depths:
        rows = [
            row for ids in prompts for _ in range(args.repeats) for row in round_and_floor(engine, ids, args, depth)
        ]
        whole, verify, drafts, feed = (statistics.median(column) * 1e3 for column in zip(*rows, strict=True))
        least = verify + drafts + feed
        print(
            f"  depth {depth}: round {whole:6.2f}, floor {least:6.2f} "
            f"(verify {verify:.2f}, drafts {drafts:.2f}, true rows {feed:.2f}), ratio {whole / least:.3f}"
        )


def round_and_floor(
    engine: Engine, ids: list[int], args: argparse.Namespace, depth: int
) -> Iterator[tuple[float, float, float, float]]:
    """Seconds of each untimed full round, and of its parts measured on the state that it left."""
    sequence = Sequence(engine.target, engine.mtp)
    sequence.prefill(ids)
    rounds = rounds_of(engine, sequence, args.tokens, depth)
    while True:
        start = time.perf_counter()
        one = next(rounds, None)
        whole = time.perf_counter() - start
        if one is None:
            return
        if one.drafted == depth and one.parts is None:
            yield whole, *parts(engine, sequence, depth, len(one.tokens))


def parts(engine: Engine, sequence: Sequence, depth: int, kept: int) -> tuple[float, float, float]:
    target, head, cache = engine.target, engine.mtp, sequence.head_cache
    tokens = mx.array([sequence.tokens[-depth - 1 :]])
    start = time.perf_counter()
    rows = target.open(tokens, sequence.cache)
    mx.eval(rows.logits)
    verified = time.perf_counter()
    rows.commit(0)
    again = time.perf_counter()
    hidden = head(rows.hidden[:, :kept], tokens[:, :kept], cache)[:, -1:]
    token = mx.argmax(head.logits(hidden), axis=-1)
    mx.eval(token, hidden)
    fed = time.perf_counter()
    for _ in range(depth - 1):
        hidden = head(hidden, token, cache)
        token = mx.argmax(head.logits(hidden), axis=-1)
    mx.eval(token)
    drafted = time.perf_counter()
    for layer in cache:
        layer.trim(kept + depth - 1)
    return verified - start, drafted - fed, fed - again


if __name__ == "__main__":
    main()
