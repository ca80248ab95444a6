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
from typing import TYPE_CHECKING, BinaryIO

from mlxmtp.errors import MlxmtpError, OptionError
from mlxmtp.exactness.guarantee import Guarantee
from mlxmtp.limits import MAX_DEPTH
from mlxmtp.ranks import Hosts, Ranks
from mlxmtp.ranks.leader import lead
from mlxmtp.worker import downloads
from mlxmtp.worker.failures import failure
from mlxmtp.worker.inbox import Inbox
from mlxmtp.worker.lines import encode
from mlxmtp.worker.messages import (
    EMPTY_MESSAGE,
    MIN_INTERVAL_S,
    CheckProgress,
    Command,
    Compare,
    Comparison,
    Download,
    Downloaded,
    Downloading,
    Event,
    Finished,
    Generate,
    ListModels,
    Load,
    Loaded,
    Stopped,
    Warned,
)

if TYPE_CHECKING:
    from mlxmtp.engine.engine import Engine
    from mlxmtp.engine.prefix_cache import PrefixCache
    from mlxmtp.worker.turns import Turns

SAVE_GRACE_S = 30.0
"""Seconds to write the prefix cache to disk once the input has ended."""


class StopRequest(Exception):  # noqa: N818 - like StopIteration, no error
    """Ends the present command from inside a callback."""


class Worker:
    """Executes one command after the other, but several turns at once.

    Args:
        inbox: the commands.
        out: the output, an event a line.
        ranks: the ranks that share the model, of which this process leads; None: it has the model alone.
    """

    def __init__(self, inbox: Inbox, out: BinaryIO, ranks: Ranks | None = None) -> None:
        self._inbox = inbox
        self._out = out
        self._ranks = ranks
        self._engine: Engine | None = None
        self._prefix_cache: PrefixCache | None = None
        self._turns: Turns | None = None
        self._sent_at = 0.0
        self._switch: str | None = None

    def run(self) -> None:
        """Execute commands until the input ends, then write the prefix cache to disk."""
        waiting: Command | None = None
        while True:
            if not waiting:
                waiting = self._inbox.poll() if self._turns else self._inbox.next()
            if waiting and self._may_begin(waiting):
                self._begin(waiting)
                waiting = None
            elif self._turns:
                self._turns.step()
            else:
                break
        if self._prefix_cache:
            self._prefix_cache.close()

    def use(self, engine: Engine, prefix_cache: PrefixCache, parallel: int = 1) -> None:
        """Generate with an engine, `parallel` turns at once."""
        from mlxmtp.worker.turns import Turns

        self._engine, self._prefix_cache = engine, prefix_cache
        self._turns = Turns(engine, prefix_cache, parallel, self._inbox.stops, self._emit)

    def _may_begin(self, command: Command) -> bool:
        """Whether a command can begin beside the turns that run: a turn if it has a place, others after the turns."""
        if not self._turns or isinstance(command, ListModels):
            return True
        return isinstance(command, Generate) and not self._turns.full

    def _begin(self, command: Command) -> None:
        """Execute a command, or begin a turn."""
        try:
            if self._inbox.stops(command):
                raise StopRequest
            self._execute(command)
        except StopRequest:
            is_turn = isinstance(command, Generate)
            self._emit(Finished(command.id, "interrupted", EMPTY_MESSAGE) if is_turn else Stopped(command.id))
        except Exception as error:
            still_loaded = isinstance(command, Load) and self._engine is not None
            failed = failure(command.id, error, still_loaded=still_loaded)
            if failed is None or (failed.kind == "memory" and self._ranks):
                raise  # other ranks may be in the middle of the turn: all start again
            if failed.kind == "memory" and self._prefix_cache:
                self._prefix_cache.clear()
            self._emit(failed)

    def _execute(self, command: Command) -> None:
        match command:
            case Load():
                self._load(command)
            case Generate():
                self._require_engine()
                assert self._turns is not None
                self._turns.begin(command)
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
        from mlxmtp.worker.caches import make_prefix_cache
        from mlxmtp.worker.turns import places

        if command.cache_dir and self._ranks:
            raise OptionError("--cache-dir is for one machine; leave it out with --hosts or -n")
        if command.model:
            if not local_path(command.model):
                downloads.download_missing(command.model, partial(self._on_download, command))
            open_checkpoint(command.model)  # a model that cannot be opened does not replace the present one
        if self._prefix_cache:
            self._prefix_cache.close()
        self._engine = self._prefix_cache = self._turns = None  # two models may not fit
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
        parallel, apart_because = places(engine, command.parallel)
        # one turn of plain decoding is what others compare with
        unmeasured = engine.head is None and command.identity == "fast" and parallel == 1
        guarantee = Guarantee("identical", MAX_DEPTH + 1, 0) if unmeasured else engine.share_passes(parallel)
        prefix_cache = make_prefix_cache(command, engine, lambda text: self._emit(Warned(0, text)))
        self._inbox.grace_s = SAVE_GRACE_S if command.cache_dir else 0.0
        self.use(engine, prefix_cache, parallel)  # not before: a stop of the measurement leaves no model behind
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
                parallel=parallel,
                apart_because=apart_because,
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

    def _require_engine(self) -> Engine:
        if self._engine is None:
            raise MlxmtpError("no model is loaded; choose one first")
        return self._engine

    def _raise_if_stopped(self, command: Command) -> None:
        if self._inbox.stops(command):
            raise StopRequest

    def _due(self) -> bool:
        return time.perf_counter() - self._sent_at >= MIN_INTERVAL_S

    def _emit(self, event: Event) -> None:
        self._out.write(encode(event))
        self._out.flush()
        self._sent_at = time.perf_counter()


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
