"""Conversations with a prefix cache, each turn compared with one without."""

from dataclasses import dataclass, field, replace

from mlxmtp import Engine, GenerationOptions
from mlxmtp.engine.prefix_cache import PrefixCache
from mlxmtp.targets import is_trimmable, leaf_caches
from tests.engine.kinds import PLENTY, words

GREEDY, SEEDED = GenerationOptions(), GenerationOptions(temperature=1.0, seed=5)


@dataclass
class Talk:
    """Turns of one engine with one prefix cache; each is compared with the same turn without a cache.

    Attributes:
        read: prompt tokens of the newest turn that were prefilled, as `on_prefill` was called.
        reused: prompt tokens of the newest turn that came from the cache.
    """

    engine: Engine
    depth: int = 3
    sampling: GenerationOptions = GREEDY
    prefixes: PrefixCache = field(default_factory=lambda: PrefixCache(PLENTY))
    read: int = 0
    reused: int = 0

    def words(self, count: int, seed: int) -> list[int]:
        return words(self.engine, count, seed)

    def says(self, prompt: list[int], *boundaries: int, count: int = 8, depth: int | None = None) -> list[int]:
        """Return the tokens of the answer, at most `count`."""
        depth = self.depth if depth is None else depth
        options = replace(self.sampling, max_tokens=count, depth=depth)
        expected = self.engine.generate(prompt, options)
        progress = [(0, 0)]
        found = self.engine.generate(
            prompt,
            options,
            prefix_cache=self.prefixes,
            boundaries=boundaries,
            on_prefill=lambda *now: progress.append(now),
        )
        assert found.tokens == expected.tokens
        stats, anew = found.stats, expected.stats
        assert (stats.rounds, stats.accepted) == (anew.rounds, anew.accepted), "the head knows the same past"
        self.read, self.reused = progress[-1][1], stats.reused_tokens
        assert self.read + self.reused in (len(prompt), len(prompt) - 1), "the last token is for the first round"
        return found.tokens

    def back_to(self, boundary: int, common: int) -> int:
        """Return how many of `common` shared tokens are reused when the last boundary among them is `boundary`."""
        if not all(map(is_trimmable, leaf_caches(self.engine.target.make_cache()))):
            return boundary
        has_kv_cache = self.depth and self.engine.mtp
        return common - bool(has_kv_cache)
