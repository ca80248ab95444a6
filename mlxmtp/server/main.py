"""Run the server: listen, load the model, serve, shut down."""

from __future__ import annotations

import asyncio
import math
import re
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from mlxmtp.engine.loading import load_tokenizer
from mlxmtp.engine.request import GenerationOptions
from mlxmtp.engine.template import renderer
from mlxmtp.errors import OptionError
from mlxmtp.exactness.guarantee import PROMISES, Identity
from mlxmtp.limits import Device
from mlxmtp.server.app import Service, create_app
from mlxmtp.server.connections import BACKLOG, Connection, Connections
from mlxmtp.server.guards import is_loopback
from mlxmtp.server.host import Host
from mlxmtp.server.prompting import PromptBuilder
from mlxmtp.terminal import visible
from mlxmtp.units import size
from mlxmtp.worker.messages import CheckProgress, Load, Loaded
from mlxmtp.worker.process import StartTransport, WorkerProcess

SHUTDOWN_S = 2
"""Seconds that open connections have to end after a signal."""
CHECK_S = 10.0
"""Least seconds between two lines on the progress of a measurement."""
ORIGIN = re.compile(r"\*|null|[a-z][a-z0-9+.-]*://[^/?#\sA-Z]+")
"""The form of an `Origin` header. A value of --cors in another form would never match."""
HOST_NAME = re.compile(r"[^\s:/?#\[\]A-Z]+")
"""The form of a host's name. A value of --allow-host in another form would never match."""


@dataclass(frozen=True)
class ServeOptions:
    """The options of `mlxmtp serve`.

    Args:
        model, head, mtp, cache_bytes, cache_dir, identity, draft_vocab, device, parallel: as in `Load`.
        depth: drafts in a round; 0: plain decoding; None: chosen by the policy.
        api_key: the key that clients must send; it may be left out on loopback only.
        origins: origins of web pages that may call the server.
        hosts: names of this machine besides localhost, under which clients may call a server on loopback.
        queue: the most requests that wait.
        max_body: limit of a request's body, in bytes.
        sampling: fields of `GenerationOptions` for requests that leave them out. They come before the recommendations
            of the model.
    """

    model: str | None = None
    head: str | None = None
    mtp: bool = True
    depth: int | None = None
    host: str = "127.0.0.1"
    port: int = 8080
    api_key: str | None = None
    origins: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    parallel: int | None = None
    queue: int = 32
    max_body: int = 32_000_000
    cache_bytes: int | None = None
    cache_dir: str | None = None
    identity: Identity = "fast"
    draft_vocab: str | None = None
    device: Device | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)

    def load(self, number: int) -> Load:
        """The command that loads the model, with the id `number`."""
        return Load(
            number,
            self.model,
            self.head,
            self.mtp,
            self.cache_bytes,
            self.cache_dir,
            self.identity,
            self.draft_vocab,
            self.device,
            self.parallel,
        )


def serve(options: ServeOptions, start: StartTransport = WorkerProcess.start) -> None:
    """Serve until a signal ends it.

    Raises:
        OptionError: an option is wrong, the address or port is not available or would be open to everyone, or the
            model cannot draft as asked.
        LoadError: the model cannot be loaded.
    """
    check(options)
    with listening(options.host, options.port, needs_loopback=options.api_key is None) as listener:
        asyncio.run(_serve(options, start, listener))


def check(options: ServeOptions) -> None:
    """Refuse options with which the server would reject every request, or protect nothing.

    Raises:
        OptionError: such an option.
    """
    GenerationOptions(**options.sampling)
    if options.max_body < 1:
        raise OptionError(f"--max-body is {options.max_body}; expected at least 1 byte")
    if options.cache_dir is not None and not options.cache_dir.strip():
        raise OptionError("--cache-dir is empty; expected a folder, or leave it out")
    key = options.api_key
    if key is not None and not (key and key.isascii() and key.isprintable() and key == key.strip()):
        found = "empty" if not key else "of characters that no client can send in a header"
        raise OptionError(f"--api-key is {found}; expected ASCII text without spaces around it")
    for origin in options.origins:
        if not ORIGIN.fullmatch(origin):
            expected = "SCHEME://HOST[:PORT] in lower case without a path, such as http://localhost:3000, or '*'"
            raise OptionError(f"--cors is {origin!r}; expected {expected}")
    for name in options.hosts:
        if not HOST_NAME.fullmatch(name):
            raise OptionError(f"--allow-host is {name!r}; expected a name in lower case without a port")


@contextmanager
def listening(host: str, port: int, *, needs_loopback: bool = False) -> Iterator[socket.socket]:
    """A listening socket. Clients that connect before the model is loaded wait.

    Raises:
        OptionError: there is no such address, the port is taken, or the address is not of loopback though it must be.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        if needs_loopback and not is_loopback(str(address[0])):
            raise OptionError(
                f"{host} can be reached from other machines, and there is no key; set --api-key-file FILE, or listen "
                "on 127.0.0.1"
            )
        listener.listen()
    except OSError as error:
        raise OptionError(
            f"cannot listen on {host}:{port}: {error.strerror or error}; choose another with --host, --port"
        ) from error
    with listener:
        yield listener


def http_server(app: ASGIApp, connections: Connections) -> uvicorn.Server:
    """The HTTP server of an application."""
    config = uvicorn.Config(
        app,
        http=partial(Connection, connections),  # type: ignore[arg-type]
        ws="none",
        backlog=BACKLOG,
        log_level="error",
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=SHUTDOWN_S,
        server_header=False,
    )
    return _Server(config)


class _Server(uvicorn.Server):
    """Leaves the signals to `serve`, which also ends the engine."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def default_options(recommended: Mapping[str, Any], options: ServeOptions) -> GenerationOptions:
    """The options of requests that leave them out.

    The command line comes first, then the model's generation_config.json, then the defaults of the APIs.

    Args:
        recommended: by the model's files.
    """
    fields = {"temperature": 1.0, **recommended, **options.sampling}
    return GenerationOptions(depth=options.depth, max_tokens=None, **fields)


async def _serve(options: ServeOptions, start: StartTransport, listener: socket.socket) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    host = Host(start, options.load, options.queue)
    host.warn = lambda text: _print(f"warning: {text}")
    host.on_check = _CheckLines()
    try:
        _print(f"loading {options.model or 'the demo model'} …")
        opening, stopped = asyncio.create_task(host.open()), asyncio.create_task(stop.wait())
        await asyncio.wait((opening, stopped), return_when=asyncio.FIRST_COMPLETED)
        if not opening.done():
            opening.cancel()
            return
        await _run(options, host, opening.result(), listener, stopped)
    finally:
        await host.close()


async def _run(
    options: ServeOptions, host: Host, loaded: Loaded, listener: socket.socket, stopped: asyncio.Task[Any]
) -> None:
    if options.depth and not loaded.head:
        raise OptionError(f"--depth {options.depth} needs a head: {loaded.plain_because}")
    folder = Path(loaded.folder)
    renderer().start()  # ready before the first request
    prompts = PromptBuilder(load_tokenizer(folder), loaded.context, loaded.vocab_size)
    name = loaded.name.rstrip("/").rsplit("/", 1)[-1] if Path(loaded.name).exists() else loaded.name
    service = Service(host, prompts, name, default_options(loaded.sampling, options), options.max_body)
    host.warn = lambda text: service.log.line(f"warning: {text}")
    hosts = options.hosts if is_loopback(listener.getsockname()[0]) else None
    connections = Connections(service.log.line)
    asyncio.get_running_loop().set_exception_handler(connections.on_loop_error)
    server = http_server(create_app(service, options.api_key, options.origins, hosts), connections)
    _print_start(options, loaded, name, listener)
    serving = asyncio.create_task(server.serve([listener]))
    await asyncio.wait((serving, stopped), return_when=asyncio.FIRST_COMPLETED)
    server.should_exit = True
    await host.close()
    await serving
    prompts.close()


def _print_start(options: ServeOptions, loaded: Loaded, name: str, listener: socket.socket) -> None:
    address, port = listener.getsockname()[:2]
    shown = f"[{address}]" if ":" in address else address
    drafts = loaded.head and options.depth != 0
    how = f"MTP, {loaded.head}" if drafts else f"plain: {loaded.plain_because or 'depth 0'}"
    how += f" · {loaded.ranks}" if loaded.ranks else ""
    _print(f"{name} at http://{shown}:{port}/v1 · {how} · context {loaded.context:,} tokens")
    if drafts:
        _print(f"at temperature 0 or with a seed: {PROMISES[loaded.promise_at(options.depth)]}")
    at_once = f"{loaded.parallel} requests at once" if loaded.parallel > 1 else "one request at a time"
    why = f"; requests of this model do not share passes: {loaded.apart_because}" if loaded.apart_because else ""
    _print(at_once + why)
    _print("`mlxmtp connect` shows the settings of clients; ctrl+c ends the server")
    if options.cache_bytes is not None:
        _print(f"prefix cache: up to {size(options.cache_bytes)}")


class _CheckLines:
    """Prints the progress of a measurement of exactness, a line every `CHECK_S` seconds."""

    def __init__(self) -> None:
        self._printed_at = -math.inf

    def __call__(self, progress: CheckProgress) -> None:
        if time.monotonic() - self._printed_at >= CHECK_S:
            self._printed_at = time.monotonic()
            _print(f"{progress.text} …")


def _print(text: str) -> None:
    print(f"mlxmtp: {visible(text)}", file=sys.stderr, flush=True)  # noqa: T201 - for the user who started it
