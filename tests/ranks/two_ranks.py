"""Runs turns on two ranks of this machine and prints what came out, as JSON: MLX's group is for a process's whole life.

python -m tests.ranks.two_ranks MODEL
"""

from __future__ import annotations

import json
import sys
from typing import Any

from mlxmtp.engine.request import GenerationOptions
from mlxmtp.ranks import local_hosts
from mlxmtp.ranks.leader import lead
from scripts.measure_ranks import Messages

PROMPT = [20, 16, 13, 8, 9, 3, 4, 3, 6, 20, 16, 22]
TOKENS = 12
SEEDED = {"temperature": 0.8, "seed": 7, "repetition_penalty": 1.2}
SAMPLED = {"temperature": 0.8}
TURNS: tuple[tuple[str, dict[str, Any]], ...] = (
    *((f"greedy, depth {depth}", {"depth": depth}) for depth in (0, 2, 4)),
    *((f"seeded, depth {depth}", SEEDED | {"depth": depth}) for depth in (0, 3)),
    ("greedy, depth auto", {}),
    ("sampled, depth 2", SAMPLED | {"depth": 2}),
)


def main(model: str) -> None:
    with lead(local_hosts(2)) as ranks:
        from mlxmtp import MlxmtpError, load
        from mlxmtp.checkpoints import open_checkpoint
        from mlxmtp.engine.prefix_cache import PrefixCache
        from mlxmtp.targets import load_target

        messages = Messages()
        found: dict[str, Any] = {"description": ranks.description, "turns": {}}
        try:
            load("/nowhere", ranks=ranks)
        except MlxmtpError as error:
            found["refused"] = str(error)
        engine = load(model, ranks=ranks)
        whole = load_target(open_checkpoint(model), lazy=True)
        found["layer_bytes"] = [_bytes(target.model.layers) for target in (engine.target, whole)]
        for name, options in TURNS:
            before = messages.count
            result = engine.generate(PROMPT, GenerationOptions(max_tokens=TOKENS, **options))
            passes = result.stats.rounds + 1  # the prompt's
            found["turns"][name] = {"tokens": result.tokens, "passes": passes, "messages": messages.count - before}
        prompts, plain = [PROMPT, PROMPT[3:]], GenerationOptions(max_tokens=TOKENS, depth=0)
        found["alone"] = [engine.generate(prompt, plain).tokens for prompt in prompts]
        found["why_apart"] = engine.why_apart  # tried at the first call
        messages.restart()
        found["together"] = [result.tokens for result in engine.batch(prompts, plain)]
        found["messages_together"] = messages.count
        cache = PrefixCache(1 << 30)
        options = GenerationOptions(max_tokens=TOKENS, depth=2)
        stream = engine.stream(PROMPT, options, prefix_cache=cache)
        begun = [token for _ in range(3) for token in next(stream).tokens]
        stream.close()
        rest = engine.generate([*PROMPT, *begun], options, prefix_cache=cache)
        found["stopped"] = {"tokens": [*begun, *rest.tokens], "reused": cache.stats.reused_tokens - len(PROMPT)}
    sys.stdout.write(json.dumps(found))


def _bytes(layers: Any) -> int:
    from mlx.utils import tree_flatten

    return sum(array.nbytes for layer in layers for _, array in tree_flatten(layer.parameters()))


if __name__ == "__main__":
    main(*sys.argv[1:])
