"""Count how often the demo model falls into a loop at temperature 0.7, by kind of prompt.

    .venv/bin/python scripts/demo_loops.py [--model PATH] [--seeds 24] [--show]

A text is a loop if it ends in a piece of at most 40 tokens that occurs three times or more, over at least 24 tokens.
"""

from __future__ import annotations

import argparse

from mlxmtp import GenerationOptions, load

FUNCTION = "Complete this Python function. Reply with the code only.\n\n"
PROMPTS = {
    "small talk": ["Hello!", "How are you doing today?", "Tell me a joke", "Who are you?", "Do you like music?"],
    "coffee": [
        "I'd like a large latte",
        "Can I get an iced mocha with oat milk?",
        "A small black coffee, please.",
        "What drinks do you have?",
    ],
    "maths": [
        "Tom has 3 boxes with 12 apples each. He eats 5 apples. How many apples are left?",
        "A baker makes 40 loaves a day and sells each for $3. How much does she earn in a week?",
        "Anna runs 4 miles every morning for 5 days. How many miles does she run?",
        "A bus has 50 seats and 12 are empty. At the next stop 7 people get on. How many people are on the bus?",
        "A book costs $8 and a pen costs $2. How much do 3 books and 5 pens cost?",
    ],
    "python": [
        FUNCTION + 'def add_numbers(a, b):\n    """Return the sum of a and b."""\n',
        FUNCTION + 'def count_words(text):\n    """Count the words of a text."""\n',
        FUNCTION + 'def read_lines(path):\n    """Return the lines of a file."""\n',
    ],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a model's folder; the bundled demo without it")
    parser.add_argument("--seeds", type=int, default=24, help="samples of each prompt (default: 24)")
    parser.add_argument("--tokens", type=int, default=240, help="tokens of each sample at most (default: 240)")
    parser.add_argument("--show", action="store_true", help="print the texts that loop")
    args = parser.parse_args()
    engine = load(args.model)
    for kind, prompts in PROMPTS.items():
        loops = ended = 0
        for prompt in prompts:
            for seed in range(args.seeds):
                turn = engine.generate(prompt, GenerationOptions(temperature=0.7, seed=seed, max_tokens=args.tokens))
                ended += turn.finish_reason == "stop"
                if is_loop(turn.tokens):
                    loops += 1
                    if args.show:
                        print(f"--- {prompt!r}, seed {seed}\n{turn.text}\n")
        print(f"{kind}: {loops} loops, {ended} ended by themselves, of {len(prompts) * args.seeds}", flush=True)


def is_loop(tokens: list[int] | tuple[int, ...]) -> bool:
    """Return whether a text of these tokens ends in a loop."""
    for period in range(1, 41):
        end = tokens[-max(3 * period, 24) :]
        if len(end) >= max(3 * period, 24) and end[period:] == end[:-period]:
            return True
    return False


if __name__ == "__main__":
    main()
