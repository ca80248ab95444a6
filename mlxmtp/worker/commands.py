"""The commands to the worker."""

from dataclasses import dataclass, field
from typing import Any

from mlxmtp.engine.request import GenerationOptions
from mlxmtp.exactness.guarantee import Identity
from mlxmtp.limits import Device


@dataclass(frozen=True)
class Command:
    """What the worker has to do. Ids grow, and each event carries the id of its command."""

    id: int


@dataclass(frozen=True)
class Load(Command):
    """Load a model in place of the present one.

    Args:
        model: None for the bundled demo.
        head, mtp, identity, draft_vocab, device: as in `mlxmtp.load`.
        cache_bytes: memory for the prefix cache in bytes; None for half of what the model leaves.
        cache_dir: folder that keeps the prefix cache across restarts, in as many bytes again (10 GB by default).
        parallel: the most turns that run at once, at least 1; None: as many as pay.
    """

    model: str | None = None
    head: str | None = None
    mtp: bool = True
    cache_bytes: int | None = None
    cache_dir: str | None = None
    identity: Identity = "fast"
    draft_vocab: str | None = None
    device: Device | None = None
    parallel: int | None = 1


@dataclass(frozen=True)
class Generate(Command):
    """Generate the turn that follows `messages`.

    Args:
        messages: chat messages, or the token ids of the prompt.
        boundaries: token counts at which later prompts may branch off from these token ids (engine/prompt.py).
        opening: text that ends the prompt and begins the answer.
        raw: whether the answer is one text, not parsed into segments.
        trace: tell where the text came from, round by round.
    """

    messages: list[dict[str, Any]] | list[int]
    settings: GenerationOptions
    boundaries: list[int] = field(default_factory=list)
    opening: str = ""
    raw: bool = False
    trace: bool = False


@dataclass(frozen=True)
class Compare(Command):
    """Measure MTP and mlx-lm's plain decoding on the turn that follows `messages`."""

    messages: list[dict[str, Any]]
    settings: GenerationOptions


@dataclass(frozen=True)
class ListModels(Command):
    """List the models of the Hub cache."""


@dataclass(frozen=True)
class Download(Command):
    """Download a repo and its head to the Hub cache. Only the end of the process cancels it.

    Args:
        head: the repo to take the head from where `repo` has none.
    """

    repo: str
    head: str | None = None


@dataclass(frozen=True)
class Stop(Command):
    """End the command `id` soon. What is generated until then is kept."""
