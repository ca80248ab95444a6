"""Caches of conversations on a disk."""

from pathlib import Path
from typing import Any

from mlxmtp import Engine, GenerationOptions
from mlxmtp.engine.prefix_cache import PrefixCache
from mlxmtp.engine.prefix_disk import PrefixStore
from tests.engine.kinds import PLENTY


class Disk:
    """A folder for caches, and what they warned of.

    Args:
        most: bytes of the folder. memory: bytes of each cache.
    """

    def __init__(self, folder: Path, engine: Engine, most: int = PLENTY, memory: int = PLENTY) -> None:
        self.folder, self.engine, self.most, self.memory = folder, engine, most, memory
        self.key = engine.facts.model_key()
        self.warnings: list[str] = []

    def cache(self) -> PrefixCache:
        """As after a start of the program."""
        return PrefixCache(self.memory, self.store())

    def store(self) -> PrefixStore:
        return PrefixStore(self.folder, self.most, self.key, self.warnings.append, min_tokens=1)

    @property
    def files(self) -> list[Path]:
        return sorted(self.folder.glob("*")) if self.folder.exists() else []

    def left(self) -> list[Path]:
        return sorted(self.folder.glob(".*"))

    def written(self, *prompts: list[int]) -> None:
        """A run of the program in which these are turns."""
        cache = self.cache()
        for prompt in prompts:
            answer(self.engine, prompt, cache)
        cache.close()


def answer(engine: Engine, prompt: list[int], prefixes: PrefixCache | None = None, **options: Any) -> tuple[Any, int]:
    """A turn's tokens, and how many of the prompt's were not read."""
    boundaries = [30, len(prompt) - 4]
    found = engine.generate(
        prompt, GenerationOptions(max_tokens=9, **options), prefix_cache=prefixes, boundaries=boundaries
    )
    return found.tokens, found.stats.reused_tokens


def flip(data: bytearray, at: int) -> bytes:
    data[at] ^= 1
    return bytes(data)
