"""Measure the time to first token in a long conversation with the prefix cache.

    .venv/bin/python scripts/bench_prefix.py [--turns 12] [--history 12000] [--new 150] [--repeats 5] [--clock cpu]

In each turn the answer comes back as it was, or rendered in another way, so that the caches are rewound to a snapshot.
The time to first token is compared with that of a prompt of the new tokens alone, and with the bare forward passes over
the new tokens on the same caches, which attend to the whole context. The demo model gets a longer context for this.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))

import mlx.core as mx  # noqa: E402
import numpy as np  # noqa: E402

from mlxmtp import Engine, GenerationOptions, load  # noqa: E402
from mlxmtp.checkpoints.checkpoint import DEMO  # noqa: E402
from mlxmtp.engine.prefix_cache import PrefixCache  # noqa: E402

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
CONTEXT = 32768
"""Context length of the demo's copy, in tokens."""
Clock = Callable[[], float]
OPENING = 4
"""Tokens between the last message and the answer, as chat templates add them."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=12)
    parser.add_argument("--history", type=int, default=12_000)
    parser.add_argument("--new", type=int, default=150)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: of use where others use the machine")
    parser.add_argument("--model", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        engine = load(arguments.model or widened_demo(Path(folder)))
        measure(engine, arguments)


def widened_demo(folder: Path) -> Path:
    """Write a copy of the bundled model with a longer context, and return its folder."""
    made = folder / "demo"
    shutil.copytree(DEMO, made)
    config = json.loads((made / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = CONTEXT
    (made / "config.json").write_text(json.dumps(config))
    return made


def measure(engine: Engine, arguments: argparse.Namespace) -> None:
    """Print a line for each turn of a conversation of random tokens."""
    clock = CLOCKS[arguments.clock]
    random, prefixes = np.random.default_rng(0), PrefixCache(8 << 30)

    def words(count: int) -> list[int]:
        return random.integers(300, len(engine.tokenizer) - 1, count).tolist()

    prompt = words(arguments.history)
    seconds, answer, _ = turn(engine, prompt, prefixes, clock)
    print(f"{engine.name}, MLX {mx.__version__} on {mx.default_device()}; {len(prompt)} tokens read in {seconds:.2f} s")
    print("turn  caches     new  read   first token    new alone  ratio  bare passes  ratio")
    ratios: list[tuple[float, float]] = []
    for number in range(1, arguments.turns + 1):
        rewound = number % 2 == 0
        past = prompt[:-OPENING] + words(OPENING + 6) if rewound else prompt + answer
        prompt = past + words(arguments.new)
        seconds, answer, read = turn(engine, prompt, prefixes, clock)
        repeats = range(arguments.repeats)
        alone = statistics.median(turn(engine, prompt[-read:], None, clock)[0] for _ in repeats)
        bare = bare_passes(engine, prefixes, prompt + answer, [words(read) for _ in repeats], clock)
        ratios.append((seconds / alone, seconds / bare))
        print(
            f"{number:4}  {'gone back' if rewound else 'gone on':9}{arguments.new:5}{read:6}{1e3 * seconds:11.1f} ms"
            f"{1e3 * alone:10.1f} ms{seconds / alone:7.2f}{1e3 * bare:10.1f} ms{seconds / bare:7.2f}"
        )
    for name, values in zip(("the new tokens alone", "the bare passes"), zip(*ratios, strict=True), strict=True):
        print(f"first token to {name}: median {statistics.median(values):.2f}, largest {max(values):.2f}")


def turn(engine: Engine, prompt: list[int], prefixes: PrefixCache | None, clock: Clock) -> tuple[float, list[int], int]:
    """Return the seconds to a turn's first token, its tokens, and the number of prompt tokens that were prefilled."""
    tokens: list[int] = []
    started, seconds = clock(), 0.0
    for chunk in engine.stream(
        prompt, GenerationOptions(max_tokens=12), prefix_cache=prefixes, boundaries=[len(prompt) - OPENING]
    ):
        seconds = seconds or clock() - started
        tokens += chunk.tokens
    return seconds, tokens, len(prompt) - chunk.stats.reused_tokens


def bare_passes(engine: Engine, prefixes: PrefixCache, past: list[int], runs: list[list[int]], clock: Clock) -> float:
    """Return the median seconds of the passes that prefill a run's tokens after `past`, and of the next pass."""
    newest = prefixes.fetch([*past, 300], engine.target, engine.mtp, drafting=True)
    sequence = newest.fork()
    prefixes.insert(newest)
    sequence.prefill([300] * 8)  # the caches grow into buffers of their own
    seconds = []
    for tokens in runs:
        started = clock()
        sequence.prefill(tokens)
        logits, hidden = engine.target.forward(mx.array([sequence.tokens[-1:]]), sequence.cache)
        mx.eval(logits)
        seconds.append(clock() - started)
        sequence.advance([300], hidden)
    return statistics.median(seconds)


if __name__ == "__main__":
    main()
