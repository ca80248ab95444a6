"""Messages and speed of a model that several ranks share, by depth.

    .venv/bin/python scripts/measure_ranks.py -n 2 [--model PATH|REPO] [--tokens 64]
    .venv/bin/python scripts/measure_ranks.py --hosts FILE --model REPO

A message is an all-reduce or an all-gather of MLX among the ranks. `scripts/simulate_ranks.py` says what to expect.
"""

from __future__ import annotations

import sys
from typing import Any

from mlxmtp.cli import Parser, guarded, options
from mlxmtp.engine.request import GenerationOptions
from mlxmtp.errors import OptionError
from mlxmtp.ranks import Hosts
from mlxmtp.ranks.leader import lead

PROMPT = "I would like a large latte with oat milk and a blueberry muffin"
DEPTHS = (0, 1, 2, 3, 4)


class Messages:
    """Counts MLX's messages among ranks, as they are put into graphs."""

    def __init__(self) -> None:
        import mlx.core as mx

        self.count = 0
        for name in ("all_sum", "all_gather"):
            setattr(mx.distributed, name, self._counted(getattr(mx.distributed, name)))

    def restart(self, *_: int) -> None:
        """Count from 0."""
        self.count = 0

    def _counted(self, send: Any) -> Any:
        def counted(*arguments: Any, **settings: Any) -> Any:
            self.count += 1
            return send(*arguments, **settings)

        return counted


def main() -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("--model", help="a model's folder or Hub repo; the bundled demo without it")
    parser.add_argument("--tokens", type=options.at_least(1), default=64, help="of each answer (default: 64)")
    options.add_ranks(parser)
    arguments = parser.parse_args()
    hosts = options.ranks(arguments)
    if not hosts:
        raise OptionError("one process sends no messages; expected -n of at least 2, or --hosts FILE")
    measure(hosts, arguments.model, arguments.tokens)
    return 0


def measure(hosts: Hosts, model: str | None, tokens: int) -> None:
    """Print a table of one prompt's greedy answer at each depth."""
    with lead(hosts) as ranks:
        from mlxmtp import load

        messages = Messages()
        engine = load(model, ranks=ranks)
        print(f"{engine.name}, {ranks.description}\n")
        print("| depth | tokens | passes | messages a token | tokens a second | the same tokens |")
        print("| --- | --- | --- | --- | --- | --- |")
        plain: list[int] = []
        for depth in DEPTHS if engine.head else DEPTHS[:1]:
            chosen = GenerationOptions(max_tokens=tokens, depth=depth)
            result = engine.generate(PROMPT, chosen, on_prefill=messages.restart)
            sent = messages.count / len(result.tokens)  # the prompt's are not among them
            plain = plain or result.tokens
            same = "yes" if result.tokens == plain else "no"
            rate = result.stats.decode_tps
            print(f"| {depth} | {len(result.tokens)} | {result.stats.rounds} | {sent:.1f} | {rate:.1f} | {same} |")


if __name__ == "__main__":
    sys.exit(guarded(main))
