"""What the worker is told and what it says."""

from dataclasses import dataclass, field
from typing import Any, Literal

from mlxmtp.decoding.stats import Stats
from mlxmtp.engine.request import GenerationOptions
from mlxmtp.exactness.verdict import Identity, Promise, promise_at
from mlxmtp.limits import MAX_DEPTH


@dataclass(frozen=True)
class Command:
    """Every event that answers a command carries its `id`; ids only grow."""

    id: int


@dataclass(frozen=True)
class Load(Command):
    """Load a model in place of the one that is loaded. model None: the bundled demo.

    Args:
        cache_bytes: memory for the caches of past turns; None: half of what the model leaves. cache_dir: where they are
            kept across restarts, in as many bytes again (None: 10 GB).
        identity, draft_vocab: as `mlxmtp.load`.
    """

    model: str | None = None
    head: str | None = None
    mtp: bool = True
    cache_bytes: int | None = None
    cache_dir: str | None = None
    identity: Identity = "fast"
    draft_vocab: str | None = None


@dataclass(frozen=True)
class Generate(Command):
    """Generate the turn that follows `messages`.

    Args:
        messages: chat messages, or token ids.
        boundaries: of token ids, after how many a later prompt may part from this one (engine/prompt.py).
        opening: what the prompt ends with and the answer begins with. raw: the answer is not taken apart.
    """

    messages: list[dict[str, Any]] | list[int]
    settings: GenerationOptions
    boundaries: list[int] = field(default_factory=list)
    opening: str = ""
    raw: bool = False


@dataclass(frozen=True)
class Compare(Command):
    """Measure MTP beside mlx-lm's plain decoding on what follows `messages`."""

    messages: list[dict[str, Any]]
    settings: GenerationOptions


@dataclass(frozen=True)
class ListModels(Command):
    """Say which models are in the Hub cache."""


@dataclass(frozen=True)
class Download(Command):
    """Bring a repo to the Hub cache with its head, from `head` where the repo itself has none. Ended by a kill."""

    repo: str
    head: str | None = None


@dataclass(frozen=True)
class Stop(Command):
    """End the command `id` soon. What is generated until then is kept."""


@dataclass(frozen=True)
class Event:
    id: int


@dataclass(frozen=True)
class Loaded(Event):
    """A model is ready.

    Args:
        name: what it was called. head: the family of its head, or None; then `plain_because` says why.
        head_source: the repo of a head that stands apart; `by_name`: nobody asked for it.
        folder: where its files are. context: its most tokens.
        memory_limit: bytes that the weights and caches can take here. thinks: its template has a thinking mode.
        promise: what was shown of the text on this machine, for passes of up to so many rows.
    """

    name: str
    head: str | None
    plain_because: str | None
    head_source: str | None
    by_name: bool
    context: int
    memory_limit: int
    thinks: bool
    seconds: float
    folder: str = ""
    promise: Promise = "distribution"
    rows: int = MAX_DEPTH + 1

    def promise_at(self, depth: int | None) -> Promise:
        """What holds at a depth."""
        return promise_at(self.promise, self.rows, depth)


@dataclass(frozen=True)
class Memory:
    """Bytes: in use and at the peak by MLX, and kept by the conversation's caches."""

    active: int
    peak: int
    caches: int


@dataclass(frozen=True)
class Prefilled(Event):
    """So many of the prompt's new tokens are read."""

    done: int
    total: int


@dataclass(frozen=True)
class TurnDelta(Event):
    """What came since the last one: [kind, text] pairs as engine/parts.py has them, and the turn so far.

    logprobs: where asked for, of each token its id, its logprob and the [id, logprob] pairs of the most likely ones.
    """

    parts: list[list[str]]
    stats: Stats
    memory: Memory
    logprobs: list[Any] = field(default_factory=list)


@dataclass(frozen=True)
class Finished(Event):
    """The turn is over: "stop", "length" or "interrupted". `message` is what goes into the history.

    stats and memory are None where the turn was stopped before its first token. stopped_by: the stop string, if any.
    """

    reason: str
    message: dict[str, Any]
    stats: Stats | None = None
    memory: Memory | None = None
    stopped_by: str | None = None


@dataclass(frozen=True)
class Compared(Event):
    """A measurement so far (engine/speed.py), complete where `done` is `total`."""

    depth: int | None
    done: int
    total: int
    plain: list[float]
    mtp: list[float]


@dataclass(frozen=True)
class ModelFound:
    """A model of the Hub cache: bytes of its weights, its head's family, and what `generate` would do with it."""

    name: str
    nbytes: int
    head: str | None
    verdict: str
    because: str


@dataclass(frozen=True)
class Models(Event):
    found: list[ModelFound]
    memory_limit: int


@dataclass(frozen=True)
class Fetching(Event):
    """So many bytes of `what` are here."""

    what: str
    done: int
    total: int


@dataclass(frozen=True)
class Fetched(Event):
    """The download is complete; `warning` says what is short of it."""

    repo: str
    warning: str | None


@dataclass(frozen=True)
class Stopped(Event):
    """A command other than `Generate` was stopped."""


@dataclass(frozen=True)
class Warned(Event):
    """Something that the user should know, whatever goes on; of no command."""

    message: str


@dataclass(frozen=True)
class Failed(Event):
    """The command came to nothing; the worker goes on. kind "memory": it needs more than there is.

    Args:
        kept: of a `Load`: the model that was there before is there still.
    """

    kind: Literal["refused", "memory", "failed"]
    message: str
    kept: bool = False


@dataclass(frozen=True)
class Died(Event):
    """The process is gone; of no command, and made by the client.

    Args:
        code: exit code, or minus the number of a signal.
        last: the last lines of its standard error.
        garbled: why its output could not be understood, where it was killed for that.
    """

    code: int
    last: str = ""
    garbled: str = ""

    @property
    def why(self) -> str:
        """How it ended, and the last line of its last words."""
        end = f"signal {-self.code}" if self.code < 0 else f"exit code {self.code}"
        if self.code == -9:
            end = "killed, perhaps because memory ran out"
        return f"{end}: {self.last.splitlines()[-1]}" if self.last else end


def ends_command(event: Event) -> bool:
    """Whether it is the last event of its command."""
    if isinstance(event, Compared):
        return event.done == event.total
    return isinstance(event, Loaded | Finished | Models | Fetched | Stopped | Failed | Died)
