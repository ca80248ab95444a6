"""The command line: `mlxmtp COMMAND`, one module for each command.

Exit codes: 0 success, 1 the machine failed (memory, disk, device), 2 bad input, 130 interrupted, 141 standard output
was closed. Nothing heavy is imported before a command runs, so that `--help` is fast.
"""

import argparse
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from itertools import takewhile
from typing import Any, NoReturn

from mlxmtp.cli import (
    attach,
    bench,
    chat,
    completion,
    connect,
    convert,
    doctor,
    generate,
    inspect,
    listing,
    pull,
    remove,
    report,
    serve,
)
from mlxmtp.errors import MlxmtpError, is_device_failure, is_out_of_memory
from mlxmtp.machine import missing_backend, use_device
from mlxmtp.names import check_model
from mlxmtp.terminal import visible
from mlxmtp.version import __version__

FAILED, BAD_INPUT, INTERRUPTED, PIPE_CLOSED = 1, 2, 130, 141

GRACE_S = 5.0
"""Seconds from an interrupt to the hard exit. The Hub client's threads would each finish their file first."""

COMMANDS = (
    chat, serve, connect, generate, bench, doctor, report, inspect, convert, attach, pull, listing, remove, completion,
)  # fmt: skip

MODELS = ("model", "head", "trunk", "source", "original")
"""Names of the arguments that hold a path or a repo."""
OWN_CHECKS = ("connect", "doctor")
"""Commands whose model is not checked here: `connect` has a server's name, `doctor` describes the machine first."""


class Parser(argparse.ArgumentParser):
    """ArgumentParser with one-line errors and without abbreviated options."""

    def __init__(self, **options: Any) -> None:
        layout = argparse.RawDescriptionHelpFormatter
        super().__init__(**options, allow_abbrev=False, formatter_class=layout)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse, but name an unknown option before argparse says which required ones are missing."""
        if not self._subparsers:
            self._refuse_unknown(sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)

    def _refuse_unknown(self, arguments: Sequence[str]) -> None:
        known = self._option_string_actions
        for argument in takewhile(lambda one: one != "--", arguments):
            option = argument.partition("=")[0] if argument.startswith("--") else argument[:2]
            is_option = len(option) > 1 and option[0] == "-" and " " not in argument
            if not is_option or option in known or argument in known or self._negative_number_matcher.match(argument):
                continue
            near = get_close_matches(option, known, n=1)
            self.error(f"unrecognized option {option}" + (f"; did you mean {near[0]}?" if near else ""))

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"mlxmtp: {visible(message)}\nTry '{self.prog} --help'.\n")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    top = Parser(
        prog="mlxmtp",
        description="Exact multi-token-prediction (MTP) speculative decoding on MLX:\n"
        "the text that plain decoding writes, in fewer passes through the model.",
        epilog="Example:\n  mlxmtp generate --prompt 'I would like a large latte'\n"
        "Without a command, on a terminal: mlxmtp chat",
    )
    top.add_argument("--version", action="version", version=f"mlxmtp {__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", dest="command")
    for command in COMMANDS:
        command.register(commands)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code.

    Args:
        argv: the arguments. None: those of the process.
    """
    return guarded(lambda: run(argv))


def run(argv: Sequence[str] | None) -> int:
    """Run a command and return its exit code. Errors are raised."""
    top = parser()
    arguments = top.parse_args(argv)
    if arguments.command is None:
        if not chat.on_a_terminal():
            top.print_help(sys.stderr)
            return BAD_INPUT
        arguments = top.parse_args(["chat"])
    for name in MODELS if arguments.command not in OWN_CHECKS else ():
        check_model(getattr(arguments, name, None) or "")  # before imports that take seconds
    try:
        use_device(getattr(arguments, "device", None))  # before mlx-lm is imported, which makes its stream then
        code: int = arguments.run(arguments)
    except ImportError as error:  # MLX is imported by the modules that a command needs, after --help was answered
        raise missing_backend(error) from error
    return code


def guarded(action: Callable[[], int]) -> int:
    """Run `action` and return its exit code. An expected error is printed as one line."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # the terminal's encoding may lack characters of the text
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
    """Make Ctrl-C raise KeyboardInterrupt, and end the process `GRACE_S` seconds later if it still runs.

    Does nothing where another program has set a handler, or outside of the main thread.
    """
    main_thread = threading.current_thread() is threading.main_thread()
    if not main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def interrupt(*_: object) -> NoReturn:
    """Handle SIGINT."""
    hard_exit = threading.Timer(GRACE_S, os._exit, [INTERRUPTED])
    hard_exit.daemon = True
    hard_exit.start()
    raise KeyboardInterrupt


def fail(message: str, code: int) -> int:
    """Print an error as one line, and return its exit code."""
    line = visible(message).replace("\n", " ")
    print(f"mlxmtp: {line}", file=sys.stderr)  # noqa: T201
    return code


def leave_quietly() -> int:
    """Redirect the closed pipe to the null device, and return the exit code. The interpreter flushes it at shutdown."""
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(null, stream.fileno())
    return PIPE_CLOSED
