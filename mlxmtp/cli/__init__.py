"""The command line: `mlxmtp COMMAND`, one module for each command.

Exit codes: 0 done, 1 the machine gave out (memory, disk), 2 bad input, 130 interrupted, 141 the reader of
standard output went away. Nothing heavy is imported before a command runs: `--help` answers at once.
"""

import argparse
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from mlxmtp.cli import attach, bench, chat, connect, convert, doctor, generate, inspect, pull, serve
from mlxmtp.errors import MlxmtpError, is_device_failure, is_out_of_memory
from mlxmtp.version import __version__

FAILED, BAD_INPUT, INTERRUPTED, PIPE_CLOSED = 1, 2, 130, 141

GRACE_S = 5.0
"""How long an interrupt waits for the end: the Hub client's threads would each finish their file first."""

COMMANDS = (chat, serve, connect, generate, bench, doctor, inspect, convert, attach, pull)


class Parser(argparse.ArgumentParser):
    """argparse with the one-line errors of the rest of the program, and no guessing at shortened options."""

    def __init__(self, **options: Any) -> None:
        layout = argparse.RawDescriptionHelpFormatter
        super().__init__(**options, allow_abbrev=False, formatter_class=layout)

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"mlxmtp: {message}\nTry '{self.prog} --help'.\n")


def parser() -> argparse.ArgumentParser:
    top = Parser(
        prog="mlxmtp",
        description="Exact multi-token-prediction (MTP) speculative decoding on MLX:\n"
        "the text that plain decoding writes, in fewer passes through the model.",
        epilog="Example:\n  mlxmtp generate --prompt 'I would like a large latte'",
    )
    top.add_argument("--version", action="version", version=f"mlxmtp {__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", dest="command")
    for command in COMMANDS:
        command.register(commands)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program on `argv` (None: the process's own) and return its exit code."""
    return guarded(lambda: run(argv))


def run(argv: Sequence[str] | None) -> int:
    top = parser()
    arguments = top.parse_args(argv)
    if arguments.command is None:
        top.print_help(sys.stderr)
        return BAD_INPUT
    code: int = arguments.run(arguments)
    return code


def guarded(action: Callable[[], int]) -> int:
    """The exit code of `action`, with every expected way to fail told in one line."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a model's text may not fit the terminal's encoding
    try:
        try:
            with interruptible():
                return action()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        return leave_quietly()
    except KeyboardInterrupt:
        return INTERRUPTED
    except MlxmtpError as error:
        return fail(str(error), BAD_INPUT)
    except MemoryError:
        return fail("out of memory; try a smaller or a quantised model, or a shorter prompt", FAILED)
    except RuntimeError as error:
        if is_out_of_memory(error):
            return fail(f"out of memory: {error}", FAILED)
        if is_device_failure(error):
            return fail(f"the device failed: {error}; run it again with less beside it", FAILED)
        raise
    except OSError as error:
        return fail(str(error), FAILED)


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, as always, and ends the process a little later if nothing else has."""
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield  # part of another program
        return
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def interrupt(*_: object) -> NoReturn:
    last = threading.Timer(GRACE_S, os._exit, [INTERRUPTED])
    last.daemon = True
    last.start()
    raise KeyboardInterrupt


def fail(message: str, code: int) -> int:
    print(f"mlxmtp: {message}", file=sys.stderr)
    return code


def leave_quietly() -> int:
    """Point the dead pipe elsewhere, or the interpreter complains about it while it shuts down."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(nowhere, stream.fileno())
    return PIPE_CLOSED
