"""The messages of the worker: commands to it (worker/commands.py), and the events from it."""

from dataclasses import dataclass, field
from typing import Any, Literal

from mlxmtp.decoding.stats import Stats
from mlxmtp.exactness.guarantee import Promise, promise_at
from mlxmtp.limits import MAX_DEPTH
from mlxmtp.worker.commands import Command as Command
from mlxmtp.worker.commands import Compare as Compare
from mlxmtp.worker.commands import Download as Download
from mlxmtp.worker.commands import Generate as Generate
from mlxmtp.worker.commands import ListModels as ListModels
from mlxmtp.worker.commands import Load as Load
from mlxmtp.worker.commands import Stop as Stop
from mlxmtp.worker.records import CachedModel as CachedModel
from mlxmtp.worker.records import Memory as Memory

MIN_INTERVAL_S = 1 / 15
"""Least seconds between two events on the progress of a command: writing one costs the engine time, and the client
more."""
EMPTY_MESSAGE = {"role": "assistant", "content": ""}
"""The answer of a turn that was stopped before its first token."""


@dataclass(frozen=True)
class Event:
    """What happened to the command `id`; 0 where it is of no command."""

    id: int


@dataclass(frozen=True)
class Loaded(Event):
    """A model is ready.

    Args:
        name: the model as `Load` named it.
        head, plain_because: family of the head; why there is none.
        head_source: repo of a head that is not in the checkpoint.
        head_by_name: whether that repo was found by its name.
        context: most tokens of a prompt and its answer.
        memory_limit: bytes that weights and caches can take on this machine.
        has_thinking: whether the chat template has a thinking mode.
        seconds: time that loading took.
        folder: where the files of the model are.
        promise, num_tokens: what was shown of the text on this machine, and the widest pass that it holds for.
        vocab_size: token ids are below it.
        sampling: the fields of `GenerationOptions` that the model's files recommend.
        ranks: processes that share the model, as "2 ranks (ring)"; "": it runs in one.
        parallel: the most turns that run at once.
        apart_because: why turns at once do not share passes; None: they do, or only one runs.
    """

    name: str
    head: str | None
    plain_because: str | None
    head_source: str | None
    head_by_name: bool
    context: int
    memory_limit: int
    has_thinking: bool
    seconds: float
    folder: str = ""
    promise: Promise = "distribution"
    num_tokens: int = MAX_DEPTH + 1
    vocab_size: int = 2**31 - 1
    sampling: dict[str, Any] = field(default_factory=dict)
    ranks: str = ""
    parallel: int = 1
    apart_because: str | None = None

    def promise_at(self, depth: int | None) -> Promise:
        """What holds at a depth."""
        return promise_at(self.promise, self.num_tokens, depth)


@dataclass(frozen=True)
class CheckProgress(Event):
    """Exactness is measured for a `Load`: `done` of `total` passes."""

    done: int
    total: int

    @property
    def text(self) -> str:
        """The progress in words."""
        return f"checking exactness, {self.done} of {self.total} passes"


@dataclass(frozen=True)
class PromptProgress(Event):
    """`done` of `total` prompt tokens are processed; those in the prefix cache are not counted."""

    done: int
    total: int


@dataclass(frozen=True)
class TurnDelta(Event):
    """What was generated since the last delta.

    Args:
        segments: [kind, text] pairs (engine/output.py).
        stats: of the turn so far.
        logprobs: a list [token id, logprob, [[token id, logprob], ...]] for each token, where asked for.
        rounds: of each round, where asked for, [drafted, accepted, from lookup, [[kind, text, depth], ...]]
            (engine/trace.py).
    """

    segments: list[list[str]]
    stats: Stats
    memory: Memory
    logprobs: list[Any] = field(default_factory=list)
    rounds: list[Any] = field(default_factory=list)


@dataclass(frozen=True)
class Finished(Event):
    """The turn is over.

    Args:
        reason: "stop", "length" or "interrupted".
        message: the assistant's message, for the prompt of the next turn.
        stats, memory: None where the turn was stopped before its first token.
        stopped_by: the stop string that ended it, if any.
    """

    reason: str
    message: dict[str, Any]
    stats: Stats | None = None
    memory: Memory | None = None
    stopped_by: str | None = None


@dataclass(frozen=True)
class Comparison(Event):
    """A comparison so far (engine/speed.py); complete where `done` is `total`.

    Args:
        plain, mtp: tokens a second of the runs that are complete.
    """

    depth: int | None
    done: int
    total: int
    plain: list[float]
    mtp: list[float]


@dataclass(frozen=True)
class Models(Event):
    """The models of the Hub cache, and the bytes that weights and caches can take on this machine."""

    models: list[CachedModel]
    memory_limit: int


@dataclass(frozen=True)
class Downloading(Event):
    """`done` of `total` bytes of a repo are downloaded."""

    repo: str
    done: int
    total: int


@dataclass(frozen=True)
class Downloaded(Event):
    """The download is complete; `warning` says what is missing or will not run."""

    repo: str
    warning: str | None


@dataclass(frozen=True)
class Stopped(Event):
    """A command other than `Generate` was stopped."""


@dataclass(frozen=True)
class Warned(Event):
    """A warning for the user; of no command."""

    message: str


@dataclass(frozen=True)
class Failed(Event):
    """The command failed; the worker goes on.

    Args:
        kind: "refused" for a mistake of the user, "memory" for too little memory, "failed" for errors of the disk.
        still_loaded: of a `Load`: whether the previous model is still loaded.
    """

    kind: Literal["refused", "memory", "failed"]
    message: str
    still_loaded: bool = False


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
        """How it ended, and the last line of its standard error."""
        end = f"signal {-self.code}" if self.code < 0 else f"exit code {self.code}"
        end = "killed, perhaps because memory ran out" if self.code == -9 else end
        return f"{end}: {self.last.splitlines()[-1]}" if self.last else end


def ends_command(event: Event) -> bool:
    """Whether it is the last event of its command."""
    if isinstance(event, Comparison):
        return event.done == event.total
    return isinstance(event, Loaded | Finished | Models | Downloaded | Stopped | Failed | Died)
