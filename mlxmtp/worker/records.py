"""Records within the worker's events."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Memory:
    """Memory in bytes.

    Args:
        active: in use by MLX.
        peak: most that was in use by MLX.
        caches: held by the prefix cache.
    """

    active: int
    peak: int
    caches: int


@dataclass(frozen=True)
class CachedModel:
    """A model of the Hub cache.

    Args:
        nbytes: size of its weights.
        head: family of its head.
        support: what `generate` would do with it: "speculates", "plain" or "refused".
        reason: why.
    """

    name: str
    nbytes: int
    head: str | None
    support: str
    reason: str
