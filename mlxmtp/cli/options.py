"""Options that several commands share, and the types of their values.

A type raises ArgumentTypeError for a text that it cannot take. The error says what was expected and what was found.
"""

import os
from argparse import SUPPRESS, Action, ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable
from typing import Any, NoReturn

from mlxmtp.errors import OptionError
from mlxmtp.exactness.guarantee import IDENTITIES
from mlxmtp.limits import DEVICES, MAX_DEPTH, MAX_PARALLEL
from mlxmtp.ranks import Hosts, local_hosts, read_hosts
from mlxmtp.ranks.mpi import started_by_mpi

KEY_VARIABLE = "MLXMTP_API_KEY"
"""The environment variable that may hold the server's key."""
MAX_LOCAL_RANKS = 64
"""Processes that -n starts at most: no model has more key heads, and each takes hundreds of megabytes."""
MAX_KEY_CHARACTERS = 4096
"""Characters of the longest key file."""


def number(text: str) -> float:
    """Return a number."""
    try:
        return float(text)
    except ValueError:
        raise ArgumentTypeError(f"expected a number, found {text!r}") from None


def whole(text: str) -> int:
    """Return a whole number."""
    try:
        return int(text)
    except ValueError:
        raise ArgumentTypeError(f"expected a whole number, found {text!r}") from None


def at_least(minimum: int) -> Callable[[str], int]:
    """Return a type for whole numbers of at least `minimum`."""

    def parse(text: str) -> int:
        value = whole(text)
        if value < minimum:
            raise ArgumentTypeError(f"expected a whole number of at least {minimum}, found {value}")
        return value

    return parse


def depth(text: str) -> int | None:
    """Return the drafts a round. None: auto."""
    if text == "auto":
        return None
    value = whole(text)
    if not 0 <= value <= MAX_DEPTH:
        raise ArgumentTypeError(f"expected a whole number from 0 (plain) to {MAX_DEPTH}, or auto, found {value}")
    return value


def parallel(text: str) -> int | None:
    """Return the turns that run at once. None: auto."""
    if text == "auto":
        return None
    value = whole(text)
    if not 1 <= value <= MAX_PARALLEL:
        raise ArgumentTypeError(f"expected a whole number from 1 to {MAX_PARALLEL}, or auto, found {value}")
    return value


def fixed_depth(text: str) -> int:
    """Return the drafts a round. Auto is refused."""
    value = depth(text)
    if value is None:
        raise ArgumentTypeError("expected a whole number; auto is measured beside the fixed depths")
    return value


class HelpAll(Action):
    """`--help-all`: prints the help with the hidden options, and exits with code 0."""

    def __init__(self, *, hidden: dict[Action, str], **options: Any) -> None:
        super().__init__(**options, nargs=0)
        self._hidden = hidden

    def __call__(self, parser: ArgumentParser, *_: object) -> NoReturn:
        for action, text in self._hidden.items():
            action.help = text
        parser.print_help()
        parser.exit()


def for_experiments(command: ArgumentParser) -> Callable[..., None]:
    """Return an `add_argument` for options that `--help` does not show and `--help-all` does.

    It gives the command its `--help-all`, so it is called once for a command, before other options are added.
    """
    hidden: dict[Action, str] = {}
    command.add_argument("--help-all", action=HelpAll, hidden=hidden, help="show the options for experiments too")
    group = command.add_argument_group("for experiments")

    def add(*names: str, help: str, **options: Any) -> None:
        hidden[group.add_argument(*names, help=SUPPRESS, **options)] = help

    return add


def sampling(arguments: Namespace) -> dict[str, Any]:
    """Return the fields of `GenerationOptions` that --temp, --top-p, --top-k, --min-p and --seed set."""
    fields = {"temperature": arguments.temp, "seed": arguments.seed}
    return filters(arguments) | {name: value for name, value in fields.items() if value is not None}


def filters(arguments: Namespace) -> dict[str, Any]:
    """Return the fields of `GenerationOptions` that --top-p, --top-k and --min-p set."""
    fields = {"top_p": arguments.top_p, "top_k": arguments.top_k, "min_p": arguments.min_p}
    return {name: value for name, value in fields.items() if value is not None}


def add_sampling(add: Callable[..., Any]) -> None:
    """Add the options that `sampling` reads, with the `add_argument` of a parser or group."""
    add("--temp", metavar="T", type=number, help="temperature; 0 is greedy (default: as the model recommends, else 0)")
    add_filters(add)
    seed = "draw the same tokens again; with MTP too, where mlxmtp doctor finds them identical"
    add("--seed", metavar="S", type=whole, help=seed)


def add_filters(add: Callable[..., Any]) -> None:
    """Add the options that `filters` reads, with the `add_argument` of a parser or group."""
    add("--top-p", metavar="P", type=number, help="keep the likeliest tokens that hold this mass")
    add("--top-k", metavar="K", type=whole, help="keep the K likeliest tokens")
    add("--min-p", metavar="M", type=number, help="drop tokens below this share of the likeliest")


def add_identity(add: Callable[..., Any]) -> None:
    """Add `--identity` with the `add_argument` of a parser or group."""
    add(
        "--identity",
        choices=IDENTITIES,
        default="fast",
        help="strict: the tokens of plain decoding, by slower arithmetic where that is needed; canonical: those of "
        "plain decoding that computes as MTP does; fast: what this machine gives, said with the answer (default: fast)",
    )


def add_device(add: Callable[..., Any]) -> None:
    """Add `--device` with the `add_argument` of a parser or group. It is set before the command runs."""
    add("--device", choices=DEVICES, help="where MLX computes (default: on the GPU, if there is one that it can use)")


def add_ranks(command: ArgumentParser) -> None:
    """Add the options that `ranks` reads."""
    add = command.add_mutually_exclusive_group().add_argument
    add("--hosts", metavar="FILE", help="share the model among the machines of this file, MLX's own hosts file")
    add("-n", "--ranks", metavar="N", type=at_least(1), help="share it among N processes of this machine")


def ranks(arguments: Namespace) -> Hosts | None:
    """Return the ranks of --hosts or -n; None: one process has the whole model.

    Raises:
        OptionError: the file cannot be read or is not a hosts file, or there are more ranks than any model has heads.
    """
    if started_by_mpi():
        return Hosts("mpi", ())  # the file may be on the first machine alone
    if arguments.hosts is not None:
        return read_hosts(arguments.hosts)
    count = arguments.ranks or 1
    if count > MAX_LOCAL_RANKS:
        raise OptionError(f"-n is {count}; expected at most {MAX_LOCAL_RANKS} processes on one machine")
    return local_hosts(count) if count > 1 else None


def add_draft_vocab(add: Callable[..., Any]) -> None:
    """Add `--draft-vocab` with the `add_argument` of a parser or group."""
    add(
        "--draft-vocab",
        metavar="N|FILE|full",
        help="draft only the N most frequent tokens, or those of a file of token ids: cheaper drafts, the same text; "
        "full: all tokens (default: auto finds out where the vocabulary is large)",
    )


def head(arguments: Namespace) -> dict[str, Any]:
    """Return the keyword arguments on the head, as `mlxmtp.load` takes them.

    Raises:
        OptionError: an option needs the head that `--no-mtp` leaves out.
    """
    for option in ("head", "draft_vocab"):
        if getattr(arguments, option) is not None and arguments.no_mtp:
            raise OptionError(f"--{option.replace('_', '-')} is for a head and --no-mtp wants none; leave one out")
    return {"mtp": not arguments.no_mtp, "head": arguments.head, "draft_vocab": arguments.draft_vocab}


def add_api_key(command: ArgumentParser, meaning: str, type: Callable[[str], str] = str) -> None:
    """Add the options that `api_key` reads.

    Args:
        meaning: begins the help on the key.
        type: of a key on the command line.
    """
    add = command.add_mutually_exclusive_group().add_argument
    add("--api-key", metavar="KEY", type=type, help=f"{meaning} (default: ${KEY_VARIABLE}, if set)")
    add("--api-key-file", metavar="FILE", help="the key is in this file")


def api_key(key: str | None, file: str | None) -> str | None:
    """Return the key: given, or from a file, or from the environment; None: there is none.

    Raises:
        OptionError: the file cannot be read, or holds something else than a key.
    """
    if file is None:
        return (os.environ.get(KEY_VARIABLE) or None) if key is None else key
    try:
        with open(os.path.expanduser(file), encoding="utf-8") as content:
            text = content.read(MAX_KEY_CHARACTERS + 1).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"--api-key-file {file}: {getattr(error, 'strerror', None) or 'it is no text'}") from error
    if not text or len(text) > MAX_KEY_CHARACTERS or len(text.splitlines()) > 1:
        raise OptionError(f"--api-key-file {file}: expected one line with the key")
    return text


def port(text: str) -> int:
    """Return a port number. 0: any free port."""
    value = whole(text)
    if not 0 <= value <= 65535:
        raise ArgumentTypeError(f"expected a port from 0 to 65535, found {value}")
    return value


def size(text: str) -> int:
    """Return bytes, from a number or from one with the suffix k, M, G or T (powers of ten)."""
    factor = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}.get(text[-1:].lower(), 1)
    value = number(text[:-1] if factor > 1 else text)
    if not 0 <= value * factor < 2**63:
        raise ArgumentTypeError(f"expected bytes as 500M or 8G, found {text!r}")
    return int(value * factor)


def tokens(text: str) -> int:
    """Return a number of tokens. 4k is 4096."""
    value = whole(text[:-1]) * 1024 if text[-1:].lower() == "k" else whole(text)
    if value < 1:
        raise ArgumentTypeError(f"expected tokens as 4096 or 4k, found {text!r}")
    return value
