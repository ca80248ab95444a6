"""Stream an answer of the bundled model, and show what its drafts were worth.

.venv/bin/python examples/stream.py ["Your message"] [MODEL]
"""

import sys

from mlxmtp import GenerationOptions, load

message = sys.argv[1] if len(sys.argv) > 1 else "Tell me a joke."
engine = load(sys.argv[2] if len(sys.argv) > 2 else None)

options = GenerationOptions(temperature=0, max_tokens=60, depth=3)  # without a depth: as many drafts as pay
for chunk in engine.stream(message, options):
    print(chunk.text, end="", flush=True)

stats = chunk.stats
accepted = ", ".join(f"{share:.0%}" for share in stats.acceptance_by_depth) or "no drafts"
print(f"\n\n{stats.tokens} tokens in {stats.rounds} passes, {stats.decode_tps:.0f} a second: {chunk.finish_reason}")
print(f"accepted at depth 1, 2, ...: {accepted}")
