"""The worker: reads commands, runs the engine, writes events.

The engine stays in the main thread: MLX arrays belong to the thread that made them.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from mlxmtp.errors import MlxmtpError, OptionError, is_out_of_memory
from mlxmtp.exactness.guarantee import Guarantee
from mlxmtp.limits import MAX_DEPTH
from mlxmtp.ranks import Hosts, Ranks
from mlxmtp.ranks.leader import lead
from mlxmtp.worker import downloads
from mlxmtp.worker.inbox import Inbox
from mlxmtp.worker.lines import encode
from mlxmtp.worker.messages import (
    CheckProgress,
    Command,
    Compare,
    Comparison,
    Download,
    Downloaded,
    Downloading,
    Event,
    Failed,
    Finished,
    Generate,
    ListModels,
    Load,
    Loaded,
    Memory,
    PromptProgress,
    Stopped,
    TurnDelta,
    Warned,
)

DEFAULT_DISK_BYTES = 10**10
"""Most bytes of the prefix cache on disk, where `Load` gives no size."""
SAVE_GRACE_S = 30.0
"""Seconds to write the prefix cache to disk once the input has ended."""
MIN_INTERVAL_S = 1 / 15
"""Least seconds between progress events: writing one costs the engine time, and the client more."""
EMPTY_MESSAGE = {"role": "assistant", "content": ""}
"""The answer of a turn that was stopped before its first token."""


class StopRequest(Exception):  # noqa: N818 - like StopIteration, no error
    """Ends the present command from inside a callback."""


class Worker:
    """Executes one command after the other.

    Args:
        inbox: the commands.
        out: the output, an event a line.
        ranks: the ranks that share the model, of which this process leads; None: it has the model alone.
    """

    def __init__(self, inbox: Inbox, out: BinaryIO, ranks: Ranks | None = None) -> None:
        self._inbox = inbox
        self._out = out
        self._ranks = ranks
        self._engine: Any = None
        self._prefix_cache: Any = None
        self._sent_at = 0.0
        self._switch: str | None = None

    def run(self) -> None:
        """Execute commands until the input ends, then write the prefix cache to disk."""
        while command := self._inbox.next():
            try:
                if self._inbox.stops(command):
                    raise StopRequest
                self._execute(command)
            except StopRequest:
                is_turn = isinstance(command, Generate)
                self._emit(Finished(command.id, "interrupted", EMPTY_MESSAGE) if is_turn else Stopped(command.id))
            except MlxmtpError as error:
                still_loaded = isinstance(command, Load) and self._engine is not None
                self._emit(Failed(command.id, "refused", str(error), still_loaded))
            except (MemoryError, RuntimeError) as error:
                if self._ranks or (isinstance(error, RuntimeError) and not is_out_of_memory(error)):
                    raise  # other ranks may be in the middle of the turn: all start again
                if self._prefix_cache:
                    self._prefix_cache.clear()
                self._emit(Failed(command.id, "memory", str(error) or "out of memory"))
            except OSError as error:
                self._emit(Failed(command.id, "failed", str(error)))
        if self._prefix_cache:
            self._prefix_cache.close()

    def _execute(self, command: Command) -> None:
        match command:
            case Load():
                self._load(command)
            case Generate():
                self._generate(command)
            case Compare():
                self._compare(command)
            case ListModels():
                self._emit(downloads.list_models(command.id))
            case Download():
                warning = downloads.download(command.repo, command.head, partial(self._on_download, command))
                self._emit(Downloaded(command.id, command.repo, warning))

    def _load(self, command: Load) -> None:
        started = time.perf_counter()
        from mlxmtp.machine import import_backend, memory_warning, usable_memory, use_device

        self._use_switch(command)
        import_backend()
        use_device(command.device)
        import mlx.core as mx

        from mlxmtp.checkpoints import open_checkpoint
        from mlxmtp.checkpoints.checkpoint import local_path
        from mlxmtp.engine.loading import load
        from mlxmtp.engine.recommended import recommended_sampling

        if command.cache_dir and self._ranks:
            raise OptionError("--cache-dir is for one machine; leave it out with --hosts or -n")
        if command.model:
            if not local_path(command.model):
                downloads.download_missing(command.model, partial(self._on_download, command))
            open_checkpoint(command.model)  # a model that cannot be opened does not replace the present one
        if self._prefix_cache:
            self._prefix_cache.close()
        self._engine = self._prefix_cache = None  # two models may not fit
        engine = load(
            command.model,
            mtp=command.mtp,
            head=command.head,
            identity=command.identity,
            draft_vocab=command.draft_vocab,
            on_check=partial(self._on_check, command),
            ranks=self._ranks,
        )
        if warning := memory_warning(mx.get_active_memory()):
            self._emit(Warned(0, warning))
        unmeasured = engine.head is None and command.identity == "fast"  # plain decoding is what others compare with
        guarantee = Guarantee("identical", MAX_DEPTH + 1, 0) if unmeasured else engine.guarantee
        self._engine = engine  # not before: a stop of the measurement leaves no model behind
        self._prefix_cache = self._make_cache(command)
        source = engine.head_source
        self._emit(
            Loaded(
                command.id,
                name=engine.name,
                head=engine.head,
                plain_because=engine.plain_because,
                head_source=source.repo if source else None,
                head_by_name=bool(source and source.by_name),
                context=engine.context,
                memory_limit=usable_memory(),
                has_thinking=engine.tokenizer.has_thinking,
                seconds=time.perf_counter() - started,
                folder=str(engine.path),
                promise=guarantee.promise,
                num_tokens=guarantee.num_tokens,
                vocab_size=engine.target.vocab_size,
                sampling=recommended_sampling(engine.path, lambda text: self._emit(Warned(0, text))),
                ranks=self._ranks.description if self._ranks else "",
            )
        )

    def _use_switch(self, command: Load) -> None:
        """Name the GPU to MLX as the doctor found best for the model, which works before MLX is imported alone."""
        from mlxmtp.exactness.switch import kept_switch
        from mlxmtp.machine import GPU_SWITCH

        wanted = kept_switch(command.model) if command.identity == "strict" else None
        if wanted == self._switch or (self._switch is None and GPU_SWITCH in os.environ):
            return
        if "mlx.core" in sys.modules:
            self._emit(Warned(0, f"a restart would be faster: {GPU_SWITCH} works from an engine's start on"))
        elif wanted:
            os.environ[GPU_SWITCH] = self._switch = wanted

    def _generate(self, command: Generate) -> None:
        engine = self._require_engine()
        segments: list[Any] = []
        logprobs: list[Any] = []
        sent = 0
        with closing(self._stream(command)) as turn:
            for chunk in turn:
                segments += chunk.segments
                logprobs += [[entry.token, entry.logprob, entry.top] for entry in chunk.logprobs]
                stopped = self._inbox.stops(command)
                if chunk.finish_reason or stopped or self._due() or chunk.stats.rounds == 1:  # the first at once
                    new = [[segment.kind, segment.text] for segment in segments[sent:]]
                    self._emit(TurnDelta(command.id, new, chunk.stats, self._memory(), logprobs))
                    sent, logprobs = len(segments), []
                if stopped:
                    break
        reason = chunk.finish_reason or "interrupted"
        message = engine.assistant_message(segments)
        self._emit(Finished(command.id, reason, message, chunk.stats, self._memory(), chunk.stopped_by))

    def _stream(self, command: Generate) -> Any:
        def on_prefill(done: int, total: int) -> None:
            self._raise_if_stopped(command)
            self._emit(PromptProgress(command.id, done, total))

        return self._require_engine().stream(
            command.messages,
            command.settings,
            raw=command.raw,
            boundaries=command.boundaries,
            opening=command.opening,
            conversation=not command.raw,
            on_prefill=on_prefill,
            prefix_cache=self._prefix_cache,
        )

    def _compare(self, command: Compare) -> None:
        from mlxmtp.engine.speed import compare

        comparison = compare(
            self._require_engine(),
            command.messages,
            command.settings,
            on_prefill=lambda done, total: self._raise_if_stopped(command),  # noqa: ARG005
        )
        with closing(comparison):
            for speed in comparison:
                self._raise_if_stopped(command)
                if speed.done == speed.total or self._due():
                    rates = list(speed.plain), list(speed.mtp)
                    self._emit(Comparison(command.id, speed.depth, speed.done, speed.total, *rates))

    def _on_check(self, command: Command, done: int, total: int) -> None:
        self._raise_if_stopped(command)
        if done >= total or self._due():
            self._emit(CheckProgress(command.id, done, total))

    def _on_download(self, command: Command, repo: str, done: int, total: int) -> None:
        if done >= total or self._due():
            self._emit(Downloading(command.id, repo, done, total))

    def _require_engine(self) -> Any:
        if self._engine is None:
            raise MlxmtpError("no model is loaded; choose one first")
        return self._engine

    def _make_cache(self, command: Load) -> Any:
        """The prefix cache; its default size depends on the model, which is loaded by now."""
        from mlxmtp.engine.prefix_cache import PrefixCache
        from mlxmtp.engine.prefix_disk import PrefixStore

        store = None
        if command.cache_dir:
            folder, max_bytes = Path(os.path.expanduser(command.cache_dir)), command.cache_bytes or DEFAULT_DISK_BYTES
            key = self._engine.facts.model_key(identity=command.identity)  # caches of other arithmetic do not fit
            store = PrefixStore(folder, max_bytes, key, lambda text: self._emit(Warned(0, text)))
            self._inbox.grace_s = SAVE_GRACE_S
        return PrefixCache(_cache_bytes() if command.cache_bytes is None else command.cache_bytes, store)

    def _memory(self) -> Memory:
        import mlx.core as mx

        return Memory(mx.get_active_memory(), mx.get_peak_memory(), self._prefix_cache.nbytes)

    def _raise_if_stopped(self, command: Command) -> None:
        if self._inbox.stops(command):
            raise StopRequest

    def _due(self) -> bool:
        return time.perf_counter() - self._sent_at >= MIN_INTERVAL_S

    def _emit(self, event: Event) -> None:
        self._out.write(encode(event))
        self._out.flush()
        self._sent_at = time.perf_counter()


def _cache_bytes() -> int:
    """Half of the memory that the loaded model leaves; at least an eighth of the usable memory."""
    import mlx.core as mx

    from mlxmtp.machine import usable_memory

    usable = usable_memory()
    return max((usable - mx.get_active_memory()) // 2, usable // 8)


def main() -> None:
    """Serve on standard input and output; what libraries print goes to standard error.

    An argument names the hosts that share the model (`Hosts.to_json`).
    """
    out = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        inbox = Inbox(sys.stdin.buffer)
        with lead(Hosts.from_json(sys.argv[1])) if sys.argv[1:] else nullcontext() as ranks:
            Worker(inbox, out, ranks).run()
    except BrokenPipeError:
        pass
    except MlxmtpError as error:
        print(error, file=sys.stderr, flush=True)  # noqa: T201 - the client reports the last line
        os._exit(1)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)  # sys.exit would wait for the thread of the inbox
