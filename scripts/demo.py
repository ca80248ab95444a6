"""Open the chat with the bundled model; without a terminal or with options, compare MTP with plain decoding once.

Run by `scripts/demo`.
"""

import argparse
import statistics
import sys
from dataclasses import replace

import mlxmtp
from mlxmtp.cli import Parser, chat, generate, guarded, options, run

PROMPT = "I'd like a large latte with oat milk, please."
REPEATS = 3


def main() -> int:
    parser = Parser(
        prog="scripts/demo",
        description="Without options, on a terminal: a chat with the bundled model. Otherwise: generate with MTP,\n"
        "then measure it beside plain decoding; the options are those of `mlxmtp generate`, and with\n"
        "--json or --no-mtp nothing is compared.",
    )
    generate.add_arguments(parser, prompt=PROMPT)
    if len(sys.argv) == 1 and chat.on_a_terminal():
        return guarded(lambda: run(["chat", "--model", "demo"]))
    return guarded(lambda: demo(parser.parse_args()))


def demo(arguments: argparse.Namespace) -> int:
    """Generate with MTP and print the text, then measure both ways. Return the exit code."""
    if arguments.json or arguments.no_mtp or arguments.depth == 0:
        return generate.run(arguments)
    generation = generate.chosen_options(arguments, {})
    prompt = generate.read_prompt(arguments.prompt)
    engine = mlxmtp.load(arguments.model, identity=arguments.identity, **options.head(arguments))
    if engine.plain_because is not None:
        return generate.answer(engine, prompt, generation, arguments)

    say(f"Generating with MTP, then measuring it beside plain decoding.\n\n> {prompt}\n")
    for depth in (arguments.depth, 0):  # the first rounds compile
        measure(engine, prompt, replace(generation, max_tokens=min(16, arguments.max_tokens)), depth, raw=arguments.raw)
    generate.answer(engine, prompt, generation, arguments)
    return compare(engine, prompt, generation, raw=arguments.raw)


def compare(engine: mlxmtp.Engine, prompt: str, generation: mlxmtp.GenerationOptions, *, raw: bool) -> int:
    """Print the medians of interleaved runs with and without MTP, and return the exit code."""
    pairs = [
        [measure(engine, prompt, generation, depth, raw=raw) for depth in (generation.depth, 0)] for _ in range(REPEATS)
    ]
    fast, plain = (statistics.median(run.stats.decode_tps for run in side) for side in zip(*pairs, strict=True))
    say(f"\nmedian of {REPEATS}, interleaved")
    say(f"with MTP  {fast:8.1f} tok/s")
    say(f"plain     {plain:8.1f} tok/s")
    if fast and plain:
        say(f"ratio     {fast / plain:8.2f}")
    else:
        say("ratio     none: too few tokens to time")

    same = all(with_mtp.tokens == without.tokens for with_mtp, without in pairs)
    if same:
        say(f"tokens    identical, all {len(pairs[0][0].tokens)}")
    elif not generation.deterministic:
        say("tokens    sampled, so each run has its own; --seed makes them equal")
    elif engine.guarantee.at(generation.depth) == "distribution":
        say("tokens    different, as near-ties may be here; --identity strict, where it can be kept, makes them equal")
    else:
        say("tokens    DIFFERENT: this must not happen; please report it")
        return 1
    return 0


def measure(
    engine: mlxmtp.Engine, prompt: str, generation: mlxmtp.GenerationOptions, depth: int | None, *, raw: bool
) -> mlxmtp.Result:
    return engine.generate(prompt, replace(generation, depth=depth), raw=raw)


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
