"""`mlxmtp connect`: print or write the settings with which another program (clients.toml) uses `mlxmtp serve`."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import sys
import tomllib
from argparse import ArgumentTypeError
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mlxmtp.cli import options
from mlxmtp.cli.served import Served, ask
from mlxmtp.cli.settings_file import change, write
from mlxmtp.cli.statistics import warn
from mlxmtp.errors import OptionError, SettingsError
from mlxmtp.terminal import say

URL = "http://127.0.0.1:8080"
NAME = "mlxmtp"
"""Name of a model that no server names, and default key for clients that need one."""
CONTEXT = 32768
"""Tokens of a context that no server names."""


@dataclass(frozen=True)
class SettingsFile:
    """A settings file of a client. clients.toml describes the fields."""

    path: str
    format: str
    content: str
    path_on_macos: str = ""
    or_path: str = ""
    keep: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        """The file's path, with ~ for the home folder."""
        if self.path_on_macos and sys.platform == "darwin":
            return self.path_on_macos
        other = self.or_path and self.or_path != self.path and not real(self.path).exists()
        return self.or_path if other and real(self.or_path).exists() else self.path


@dataclass(frozen=True)
class Client:
    """A client. clients.toml describes the fields."""

    title: str
    start: str
    know: str
    files: tuple[SettingsFile, ...] = ()
    shell: str = ""
    steps: tuple[str, ...] = ()
    tried: str = ""


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "connect",
        help="let a coding agent or a chat program use `mlxmtp serve`",
        description="Print the settings with which another program uses `mlxmtp serve`, or write them.\n"
        "Without CLIENT it lists the programs.",
        epilog="Example:\n  mlxmtp connect codex --write",
    )
    add = command.add_argument
    add("client", metavar="CLIENT", nargs="?", help="the program, such as claude, codex or opencode")
    add("--url", metavar="URL", type=address, default=URL, help=f"the server's address (default: {URL})")
    add("--model", metavar="NAME", type=given, help="what CLIENT calls the model (default: as the server does)")
    window = "tokens that CLIENT may fill (default: as many as the server says)"
    add("--context", metavar="N", type=options.at_least(1), help=window)
    options.add_api_key(command, "the server's key, if it has one", type=given)
    add("--write", action="store_true", help="write the settings; a file that is there is kept as a copy")
    command.set_defaults(run=run)


def address(text: str) -> str:
    """Return the server's address without a path, because each client adds another one."""
    try:
        parts = urlsplit(text)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        good = None
    if not good or parts.query or parts.fragment or re.search(r"\s", text):
        raise ArgumentTypeError(f"expected an address such as {URL}, found {text!r}")
    return re.sub(r"/v1(/.*)?$", "", text.rstrip("/")).rstrip("/")


def given(text: str) -> str:
    """Return a printable text that is not blank."""
    if not text.strip() or not text.isprintable():
        raise ArgumentTypeError(f"expected a word, found {text!r}")
    return text


def run(arguments: argparse.Namespace) -> int:
    known = clients()
    if arguments.client is None:
        if arguments.write:
            raise OptionError("--write needs a CLIENT; `mlxmtp connect` lists them")
        say(listing(known))
        return 0
    if arguments.client not in known:
        near = get_close_matches(arguments.client, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}? " if near else ""
        raise OptionError(f"unknown client {arguments.client!r}; {hint}known are: {', '.join(known)}")
    key = options.api_key(arguments.api_key, arguments.api_key_file) or NAME
    client, values = known[arguments.client], values_of(arguments, key, served_by(arguments, key))
    if arguments.write:
        write_files(arguments.client, client, values)
    else:
        say("\n\n".join(settings(client, values)), end="\n\n")
    say(f"Start:  {filled(client.start, values, shlex.quote)}")
    say(f"Note:   {filled(client.know, values, str)}")
    say(f"Tried:  {client.tried or 'no; this is what its documentation says'}")
    if client.files and not arguments.write:
        say("With --write, mlxmtp puts it there and keeps what else is in the file.")
    return 0


def clients() -> dict[str, Client]:
    """Return the clients by the names that CLIENT takes."""
    rows = tomllib.loads(files("mlxmtp.cli").joinpath("clients.toml").read_text(encoding="utf-8"))
    return {name: client(row) for name, row in rows.items()}


def client(row: dict[str, Any]) -> Client:
    """Return the client of a table of clients.toml."""
    settings_files = (SettingsFile(**file | {"keep": tuple(file.get("keep", ()))}) for file in row.pop("files", ()))
    return Client(**row | {"steps": tuple(row.get("steps", ()))}, files=tuple(settings_files))


def listing(known: Mapping[str, Client]) -> str:
    """Return the clients with their titles and files in columns."""
    wide = max(map(len, known)), max(len(client.title) for client in known.values())
    return "\n".join(
        f"{name:{wide[0]}}  {client.title:{wide[1]}}  "
        + (", ".join(file.place for file in client.files) or "its own settings, or the shell")
        for name, client in known.items()
    )


def served_by(arguments: argparse.Namespace, key: str) -> Served:
    """Return what the server serves, unless the command line says all of it. A guess is told."""
    if arguments.context and arguments.model:
        return Served(arguments.model, arguments.context)
    answer = ask(arguments.url, key)
    if isinstance(answer, Served):
        return answer
    if not arguments.context:
        warn(f"{answer}; {CONTEXT:,} tokens are taken for its context, unless --context is given")
    return Served(NAME, CONTEXT)


def values_of(arguments: argparse.Namespace, key: str, served: Served) -> dict[str, str]:
    """Return the values of the placeholders in clients.toml. The command line comes before the server."""
    context = arguments.context or served.context
    numbers = {"context": context, "output": max(1, context // 4)}
    texts = {"url": arguments.url, "model": arguments.model or served.model, "key": key}
    return texts | {name: str(number) for name, number in numbers.items()}


def filled(text: str, values: Mapping[str, str], quoted: Callable[[str], str]) -> str:
    """Return `text` with its placeholders replaced. `quoted` quotes each value."""
    return re.sub(r"\{(url|model|key|context|output)\}", lambda match: quoted(values[match[1]]), text)


def in_quotes(value: str) -> str:
    """Return a value as it is written between double quotes, in JSON, TOML and YAML alike."""
    return json.dumps(value, ensure_ascii=False)[1:-1]


def settings(client: Client, values: Mapping[str, str]) -> list[str]:
    """Return the settings of a client as sections of text, for a person who enters them by hand."""
    texts = {f"{client.title}: {file.place}": filled(file.content, values, in_quotes) for file in client.files}
    steps = [f"  {filled(step, values, str)}" for step in client.steps]
    shell = f"  {filled(client.shell, values, shlex.quote)}" if client.shell else ""
    texts |= {f"{client.title}, in its own settings:": "\n".join(steps), f"{client.title}, in a shell:": shell}
    return [head + "\n\n" + text.rstrip() for head, text in texts.items() if text]


def write_files(name: str, client: Client, values: Mapping[str, str]) -> None:
    """Write the settings files of a client. Nothing is written unless every file can be changed.

    Raises:
        OptionError: the client has no settings file.
        SettingsError: a file cannot be changed or written.
    """
    if not client.files:
        raise OptionError(f"{client.title} has no settings file that mlxmtp could write; see `mlxmtp connect {name}`")
    changes = [
        (file.place, change(real(file.place), file.format, filled(file.content, values, in_quotes), file.keep))
        for file in client.files
    ]
    for place, needed in changes:
        if needed is None:
            say(f"{place}: nothing to change")
            continue
        backup = write(needed, private=values["key"] != NAME)
        say(f"{place}: written" + (f"; as it was: {backup.name}" if backup else ""))


def real(place: str) -> Path:
    """Return a path with the home folder in place of ~.

    Raises:
        SettingsError: this user has no home folder.
    """
    try:
        if not os.environ.get("HOME", "~"):  # expanduser would return the root folder
            raise RuntimeError
        return Path(place).expanduser()
    except RuntimeError as error:
        raise SettingsError(f"{place}: this user has no home folder") from error
