"""Prefix caches with a store on disk."""

from pathlib import Path
from typing import Any

from mlxmtp import Engine, GenerationOptions
from mlxmtp.engine.prefix_cache import PrefixCache
from mlxmtp.engine.prefix_disk import PrefixStore
from tests.engine.kinds import PLENTY


class Disk:
    """A folder for caches, and the warnings of their stores.

    Args:
        most: bytes of the folder. memory: bytes of each cache.
    """

    def __init__(self, folder: Path, engine: Engine, most: int = PLENTY, memory: int = PLENTY) -> None:
        self.folder, self.engine, self.most, self.memory = folder, engine, most, memory
        self.key = engine.facts.model_key()
        self.warnings: list[str] = []

    def cache(self) -> PrefixCache:
        """Return a cache as after a start of the program."""
        return PrefixCache(self.memory, self.store())

    def store(self) -> PrefixStore:
        return PrefixStore(self.folder, self.most, self.key, self.warnings.append, min_tokens=1)

    @property
    def files(self) -> list[Path]:
        return sorted(self.folder.glob("*")) if self.folder.exists() else []

    def left(self) -> list[Path]:
        return sorted(self.folder.glob(".*"))

    def written(self, *prompts: list[int]) -> None:
        """Run the program once with these prompts as turns."""
        cache = self.cache()
        for prompt in prompts:
            answer(self.engine, prompt, cache)
        cache.close()


def answer(engine: Engine, prompt: list[int], prefixes: PrefixCache | None = None, **options: Any) -> tuple[Any, int]:
    """Return a turn's tokens, and how many tokens of the prompt were reused."""
    boundaries = [30, len(prompt) - 4]
    found = engine.generate(
        prompt, GenerationOptions(max_tokens=9, **options), prefix_cache=prefixes, boundaries=boundaries
    )
    return found.tokens, found.stats.reused_tokens


def flip(data: bytearray, at: int) -> bytes:
    data[at] ^= 1
    return bytes(data)
