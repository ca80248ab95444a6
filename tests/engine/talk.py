"""Conversations with an engine, each turn compared with one that remembers nothing."""

from dataclasses import dataclass, field, replace

from mlxmtp import Engine, GenerationOptions
from mlxmtp.engine.prefix_cache import PrefixCache
from mlxmtp.targets import is_trimmable, leaf_caches
from tests.engine.kinds import PLENTY, words

GREEDY, SEEDED = GenerationOptions(), GenerationOptions(temperature=1.0, seed=5)


@dataclass
class Talk:
    """Turns of one engine with one cache; each is compared with the same turn of an engine that remembers nothing.

    `read`: of the newest turn, how many tokens were prefilled, by what `on_prefill` was told.
    """

    engine: Engine
    depth: int = 3
    sampling: GenerationOptions = GREEDY
    prefixes: PrefixCache = field(default_factory=lambda: PrefixCache(PLENTY))
    read: int = 0
    reused: int = 0

    def words(self, count: int, seed: int) -> list[int]:
        return words(self.engine, count, seed)

    def says(self, prompt: list[int], *boundaries: int, count: int = 12, depth: int | None = None) -> list[int]:
        """The answer, which ends after `count` tokens or by itself."""
        depth = self.depth if depth is None else depth
        options = replace(self.sampling, max_tokens=count, depth=depth)
        expected = self.engine.generate(prompt, options)
        told = [(0, 0)]
        found = self.engine.generate(
            prompt,
            options,
            prefix_cache=self.prefixes,
            boundaries=boundaries,
            on_prefill=lambda *now: told.append(now),
        )
        assert found.tokens == expected.tokens
        stats, anew = found.stats, expected.stats
        assert (stats.rounds, stats.accepted) == (anew.rounds, anew.accepted), "the head knows the same past"
        self.read, self.reused = told[-1][1], stats.reused_tokens
        assert self.read + self.reused in (len(prompt), len(prompt) - 1), "the last token is for the first round"
        return found.tokens

    def back_to(self, mark: int, common: int) -> int:
        """Of `common` tokens, those that need not be read again when the last mark among them is `mark`."""
        if not all(map(is_trimmable, leaf_caches(self.engine.target.make_cache()))):
            return mark
        has_kv_cache = self.depth and self.engine.mtp
        return common - bool(has_kv_cache)
