"""The worker's side: reads commands, runs the engine in this thread and no other, says what happens."""

from __future__ import annotations

import os
import queue
import sys
import threading
import time
import traceback
from contextlib import closing
from pathlib import Path
from typing import Any, BinaryIO

from mlxmtp.errors import CheckpointError, MlxmtpError, is_out_of_memory
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
    ModelFound,
    Models,
    Prefilled,
    Said,
    Settings,
    Stop,
    Stopped,
    decode,
    encode,
)

NOTHING = {"role": "assistant", "content": ""}
PAUSE_S = 1 / 15
"""The least time between two messages of one kind: each costs the engine and the reader some."""


class Inbox:
    """Commands, read by a thread of their own, so that a stop is heard while the engine works.

    When the other side goes away, so does this process, whatever it is doing.
    """

    def __init__(self, lines: BinaryIO) -> None:
        self._lines = lines
        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._stopped = 0
        threading.Thread(target=self._read, daemon=True).start()

    def next(self) -> Command:
        return self._commands.get()

    def stops(self, command: Command) -> bool:
        """Whether the command is to end."""
        return command.id <= self._stopped

    def _read(self) -> None:
        code = 1
        try:
            for line in self._lines:
                command = decode(line)
                if isinstance(command, Stop):
                    self._stopped = max(self._stopped, command.id)
                else:
                    self._commands.put(command)
            code = 0
        except Exception:
            traceback.print_exc()
        finally:
            os._exit(code)


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
        self._cache_bytes = 0
        self._sent_at = 0.0

    def run(self) -> None:
        while True:
            command = self._inbox.next()
            try:
                if self._inbox.stops(command):
                    raise StopRequest
                self._carry_out(command)
            except StopRequest:
                turn = isinstance(command, Generate)
                self._say(Finished(command.id, "interrupted", NOTHING) if turn else Stopped(command.id))
            except MlxmtpError as error:
                self._say(Failed(command.id, "refused", str(error)))
            except (MemoryError, RuntimeError) as error:
                if isinstance(error, RuntimeError) and not is_out_of_memory(error):
                    raise
                self._forget()
                self._say(Failed(command.id, "memory", str(error) or "out of memory"))
            except OSError as error:
                self._say(Failed(command.id, "failed", str(error)))

    def _carry_out(self, command: Command) -> None:
        match command:
            case Load():
                self._load(command)
            case Generate():
                self._generate(command)
            case Compare():
                self._compare(command)
            case ListModels():
                self._list_models(command)
            case Download():
                warning = self._fetch(command, command.repo, command.head)
                self._say(Fetched(command.id, command.repo, warning))

    def _load(self, command: Load) -> None:
        started = time.perf_counter()
        self._forget()
        self._engine = None  # never two models at once
        if command.model and not Path(command.model).expanduser().exists():
            self._fetch_what_is_missing(command, command.model)
        import mlxmtp
        from mlxmtp.conversion.pull import usable_memory

        self._engine = engine = mlxmtp.load(command.model, mtp=command.mtp, head=command.head)
        self._cache_bytes = _cache_bytes()
        self._forget()
        source = engine.head_source
        self._say(
            Loaded(
                command.id,
                name=engine.name,
                head=engine.head,
                plain_because=engine.plain_because,
                head_source=source.repo if source else None,
                by_name=bool(source and source.by_name),
                default_depth=engine.default_depth,
                context=engine.context,
                memory_limit=usable_memory(),
                thinks=engine.tokenizer.has_thinking,
                token_identical=engine.token_identical,
                seconds=time.perf_counter() - started,
            )
        )

    def _generate(self, command: Generate) -> None:
        engine = self._loaded()
        parts: list[Any] = []
        sent = 0
        with closing(self._stream(command)) as turn:
            for chunk in turn:
                parts += chunk.parts
                if chunk.finish_reason or self._due():
                    fresh = [[part.kind, part.text] for part in parts[sent:]]
                    self._say(Said(command.id, fresh, chunk.stats, self._memory()))
                    sent = len(parts)
                if self._inbox.stops(command):
                    break
        reason = chunk.finish_reason or "interrupted"
        self._say(Finished(command.id, reason, engine.message(parts), chunk.stats, self._memory()))

    def _stream(self, command: Generate) -> Any:
        def read(done: int, total: int) -> None:
            self._check(command)
            self._say(Prefilled(command.id, done, total))

        wanted = command.settings
        return self._loaded().stream(
            command.messages,
            _sampling(wanted),
            max_tokens=wanted.max_tokens,
            depth=wanted.depth,
            thinking=wanted.thinking,
            on_prefill=read,
            prefixes=self._prefixes,
        )

    def _compare(self, command: Compare) -> None:
        from mlxmtp.chat.speed import compare

        wanted = command.settings
        steps = compare(
            self._loaded(),
            command.messages,
            _sampling(wanted),
            depth=wanted.depth,
            thinking=wanted.thinking,
            on_prefill=lambda done, total: self._check(command),  # noqa: ARG005
        )
        with closing(steps):
            for speed in steps:
                self._check(command)
                if speed.done == speed.total or self._due():
                    rates = list(speed.plain), list(speed.mtp)
                    self._say(Compared(command.id, speed.depth, speed.done, speed.total, *rates))

    def _list_models(self, command: ListModels) -> None:
        from mlxmtp.conversion.inspect import Report, inspect_cache
        from mlxmtp.conversion.pull import usable_memory

        found = []
        for one in inspect_cache():
            if isinstance(one, Report):
                nbytes = one.trunk.nbytes + (one.head.weights.nbytes if one.head else 0)
                family = one.head.family if one.head else None
                found.append(ModelFound(one.name, nbytes, family, one.verdict, one.because))
            else:
                found.append(ModelFound(one.name, 0, None, "refused", one.error))
        self._say(Models(command.id, found, usable_memory()))

    def _fetch(self, command: Command, repo: str, head: str | None = None) -> str | None:
        """Download a repo and its head; what is short of it."""
        from mlxmtp.checkpoints import open_checkpoint
        from mlxmtp.conversion.attach import attach
        from mlxmtp.conversion.pull import has_head, head_to_pull, plan_pull, pull

        plan = plan_pull(repo)
        snapshot = pull(plan, lambda done, total: self._fetching(command, repo, done, total))
        try:
            if head is not None and not has_head(snapshot):
                attach(repo, head, on_bytes=lambda done, total: self._fetching(command, head, done, total))
            elif other := head_to_pull(snapshot):
                pull(plan_pull(other), lambda done, total: self._fetching(command, other, done, total))
        except CheckpointError as error:
            return f"the model is here, its head is not: {error}"
        open_checkpoint(snapshot)
        return plan.memory_warning

    def _fetch_what_is_missing(self, command: Command, repo: str) -> None:
        """Of a repo that `load` would download in silence; without a connection, what is there has to do."""
        from mlxmtp.conversion.pull import plan_pull

        try:
            missing = plan_pull(repo).missing_bytes
        except CheckpointError:
            return  # `load` says it
        if missing:
            self._fetch(command, repo)

    def _fetching(self, command: Command, what: str, done: int, total: int) -> None:
        if done >= total or self._due():
            self._say(Fetching(command.id, what, done, total))

    def _loaded(self) -> Any:
        if self._engine is None:
            raise MlxmtpError("no model is loaded; choose one first")
        return self._engine

    def _forget(self) -> None:
        """The conversations' caches."""
        from mlxmtp.chat.prefixes import PrefixCache

        self._prefixes = PrefixCache(self._cache_bytes)

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

    from mlxmtp.conversion.pull import usable_memory

    usable = usable_memory()
    return max((usable - mx.get_active_memory()) // 2, usable // 8)


def _sampling(wanted: Settings) -> Any:
    from mlxmtp import OptionError, Sampling

    try:
        return Sampling(wanted.temperature, wanted.top_p, wanted.top_k, wanted.min_p, wanted.seed)
    except ValueError as error:
        raise OptionError(str(error)) from error


def main() -> None:
    """Serve on standard input and output; whatever else is printed goes to standard error."""
    out = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        Worker(Inbox(sys.stdin.buffer), out).run()
    except BrokenPipeError:
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)  # Python's own way out waits for the thread that reads
