"""The worker's side: reads commands, runs the engine in this thread and no other, says what happens."""

from __future__ import annotations

import os
import sys
import time
import traceback
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from mlxmtp.errors import MlxmtpError, is_out_of_memory
from mlxmtp.exactness.verdict import Guarantee
from mlxmtp.limits import MAX_DEPTH
from mlxmtp.worker import downloads
from mlxmtp.worker.inbox import Inbox
from mlxmtp.worker.lines import encode
from mlxmtp.worker.messages import (
    Command,
    Compare,
    Compared,
    Download,
    Event,
    Failed,
    Fetched,
    Fetching,
    Finished,
    Generate,
    ListModels,
    Load,
    Loaded,
    Memory,
    Prefilled,
    Stopped,
    TurnDelta,
    Warned,
)

DISK_BYTES = 10**10
SAVING_S = 30.0
"""How long caches may take to be written, when the other side has gone."""
NOTHING = {"role": "assistant", "content": ""}
PAUSE_S = 1 / 15
"""The least time between two messages of one kind: each costs the engine and the reader some."""


class StopRequest(Exception):  # noqa: N818 - like StopIteration, no error
    """Ends a command from inside a callback."""


class Worker:
    """Carries out one command after the other.

    Args:
        inbox: where commands come from. out: where events go, a line each.
    """

    def __init__(self, inbox: Inbox, out: BinaryIO) -> None:
        self._inbox = inbox
        self._out = out
        self._engine: Any = None
        self._prefixes: Any = None
        self._sent_at = 0.0

    def run(self) -> None:
        """Until there is nothing to come; then what is to be kept is written."""
        while command := self._inbox.next():
            try:
                if self._inbox.stops(command):
                    raise StopRequest
                self._carry_out(command)
            except StopRequest:
                turn = isinstance(command, Generate)
                self._say(Finished(command.id, "interrupted", NOTHING) if turn else Stopped(command.id))
            except MlxmtpError as error:
                kept = isinstance(command, Load) and self._engine is not None
                self._say(Failed(command.id, "refused", str(error), kept))
            except (MemoryError, RuntimeError) as error:
                if isinstance(error, RuntimeError) and not is_out_of_memory(error):
                    raise
                if self._prefixes:
                    self._prefixes.clear()
                self._say(Failed(command.id, "memory", str(error) or "out of memory"))
            except OSError as error:
                self._say(Failed(command.id, "failed", str(error)))
        if self._prefixes:
            self._prefixes.close()

    def _carry_out(self, command: Command) -> None:
        match command:
            case Load():
                self._load(command)
            case Generate():
                self._generate(command)
            case Compare():
                self._compare(command)
            case ListModels():
                self._say(downloads.listed(command.id))
            case Download():
                warning = downloads.fetch(command.repo, command.head, partial(self._fetching, command))
                self._say(Fetched(command.id, command.repo, warning))

    def _load(self, command: Load) -> None:
        started = time.perf_counter()
        from mlxmtp.machine import import_backend, usable_memory

        import_backend()
        from mlxmtp.checkpoints import open_checkpoint
        from mlxmtp.engine.loading import load

        if command.model:
            if not Path(command.model).expanduser().exists():
                downloads.fetch_what_is_missing(command.model, partial(self._fetching, command))
            open_checkpoint(command.model)  # what is not there throws nothing out
        if self._prefixes:
            self._prefixes.close()
        self._engine = self._prefixes = None  # never two models at once
        self._engine = engine = load(
            command.model,
            mtp=command.mtp,
            head=command.head,
            identity=command.identity,
            draft_vocab=command.draft_vocab,
        )
        self._prefixes = self._make_cache(command)
        source = engine.head_source
        nothing = engine.head is None and command.identity == "fast"  # to compare, so nothing to measure
        shown = Guarantee("identical", MAX_DEPTH + 1, 0) if nothing else engine.verdict
        self._say(
            Loaded(
                command.id,
                name=engine.name,
                head=engine.head,
                plain_because=engine.plain_because,
                head_source=source.repo if source else None,
                by_name=bool(source and source.by_name),
                context=engine.context,
                memory_limit=usable_memory(),
                thinks=engine.tokenizer.has_thinking,
                seconds=time.perf_counter() - started,
                folder=str(engine.path),
                promise=shown.promise,
                rows=shown.rows,
            )
        )

    def _generate(self, command: Generate) -> None:
        from mlxmtp.engine.parts import Segment

        engine = self._loaded()
        parts: list[Segment] = []
        logprobs: list[Any] = []
        sent = 0
        with closing(self._stream(command)) as turn:
            for chunk in turn:
                parts += [Segment("text", chunk.text)] if command.raw else chunk.parts
                logprobs += [[one.token, one.logprob, one.top] for one in chunk.logprobs]
                if chunk.finish_reason or self._due() or chunk.stats.rounds == 1:  # the first token does not wait
                    fresh = [[part.kind, part.text] for part in parts[sent:]]
                    self._say(TurnDelta(command.id, fresh, chunk.stats, self._memory(), logprobs))
                    sent, logprobs = len(parts), []
                if self._inbox.stops(command):
                    break
        reason = chunk.finish_reason or "interrupted"
        said = engine.message(parts)
        self._say(Finished(command.id, reason, said, chunk.stats, self._memory(), chunk.stopped_by))

    def _stream(self, command: Generate) -> Any:
        def read(done: int, total: int) -> None:
            self._check(command)
            self._say(Prefilled(command.id, done, total))

        return self._loaded().stream(
            command.messages,
            command.settings,
            boundaries=command.boundaries,
            opening=command.opening,
            on_prefill=read,
            prefix_cache=self._prefixes,
        )

    def _compare(self, command: Compare) -> None:
        from mlxmtp.engine.speed import compare

        steps = compare(
            self._loaded(),
            command.messages,
            command.settings,
            on_prefill=lambda done, total: self._check(command),  # noqa: ARG005
        )
        with closing(steps):
            for speed in steps:
                self._check(command)
                if speed.done == speed.total or self._due():
                    rates = list(speed.plain), list(speed.mtp)
                    self._say(Compared(command.id, speed.depth, speed.done, speed.total, *rates))

    def _fetching(self, command: Command, what: str, done: int, total: int) -> None:
        if done >= total or self._due():
            self._say(Fetching(command.id, what, done, total))

    def _loaded(self) -> Any:
        if self._engine is None:
            raise MlxmtpError("no model is loaded; choose one first")
        return self._engine

    def _make_cache(self, command: Load) -> Any:
        """For the conversations' caches, now that the model's size is known."""
        from mlxmtp.engine.model_key import model_key
        from mlxmtp.engine.prefix_cache import PrefixCache
        from mlxmtp.engine.prefix_disk import PrefixStore

        store = None
        if command.cache_dir:
            folder, bound = Path(command.cache_dir).expanduser(), command.cache_bytes or DISK_BYTES
            key = model_key(self._engine, identity=command.identity)  # whose arithmetic the caches are made by
            store = PrefixStore(folder, bound, key, lambda text: self._say(Warned(0, text)))
            self._inbox.grace_s = SAVING_S
        return PrefixCache(_cache_bytes() if command.cache_bytes is None else command.cache_bytes, store)

    def _memory(self) -> Memory:
        import mlx.core as mx

        return Memory(mx.get_active_memory(), mx.get_peak_memory(), self._prefixes.nbytes)

    def _check(self, command: Command) -> None:
        if self._inbox.stops(command):
            raise StopRequest

    def _due(self) -> bool:
        return time.perf_counter() - self._sent_at >= PAUSE_S

    def _say(self, event: Event) -> None:
        self._out.write(encode(event))
        self._out.flush()
        self._sent_at = time.perf_counter()


def _cache_bytes() -> int:
    """Half of the memory that the model, just loaded, leaves; at least an eighth of all."""
    import mlx.core as mx

    from mlxmtp.machine import usable_memory

    usable = usable_memory()
    return max((usable - mx.get_active_memory()) // 2, usable // 8)


def main() -> None:
    """Serve on standard input and output; whatever else is printed goes to standard error."""
    out = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        Worker(Inbox(sys.stdin.buffer), out).run()
    except BrokenPipeError:
        pass
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)  # Python's own way out waits for the thread that reads
