"""Add settings to another program's settings file, and keep everything else in it.

Each format offers a few ways to change a file's text. A way is taken only if its result, parsed again, equals the
wanted settings. So comments stay, and a file for which no way works is left as it is.
"""

from __future__ import annotations

import json
import re
import shutil
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxmtp import files
from mlxmtp.errors import SettingsError
from mlxmtp.files import explain_full_disk, read_regular, staged_file

Parse = Callable[[str], Any]
COMMENT = re.compile(r'("(?:\\.|[^"\\])*")|//[^\n]*|/\*.*?\*/', re.DOTALL)
LAST_COMMA = re.compile(r'("(?:\\.|[^"\\])*")|,(?=\s*[}\]])')
NAMES = ("id", "model_id", "name")
"""Keys that identify an entry of a list. The first that an entry has is taken."""


@dataclass(frozen=True)
class Change:
    """A change of a file.

    Args:
        before: the text of the file. None: the file does not exist.
        text: the text after the change.
    """

    path: Path
    before: str | None
    text: str


def change(path: Path, kind: str, content: str, keep: tuple[str, ...] = ()) -> Change | None:
    """Return the change that adds `content` to a file, or None if the file has it.

    Args:
        kind: json (also with comments), toml or yaml.
        content: settings as text in the format `kind`.
        keep: top-level keys that are not changed if the file has them.

    Raises:
        SettingsError: the file cannot be read, or cannot be changed without a loss.
    """
    before = read(path)
    if before is None or not before.strip():
        return Change(path, before, content)
    parse, texts = FORMATS[kind]
    try:
        old = parse(before)
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise SettingsError(f"{path} is not valid {kind.upper()}: {reason}; nothing was changed") from error
    new = parse(content)
    if isinstance(new, dict) and isinstance(old, dict):
        new = {key: value for key, value in new.items() if key not in keep or key not in old}
    wanted = merged(old, new, str(path))
    if wanted == old:
        return None
    for text in texts(before, old, new, wanted):
        if readable(parse, text) == wanted:
            return Change(path, before, text)
    raise SettingsError(
        f"{path}: its comments or its form would be lost, so nothing was changed; "
        "put in by hand what this command prints without --write"
    )


def write(change: Change, *, private: bool = False) -> Path | None:
    """Change a file atomically, and return the copy of its previous content, if there was any.

    Args:
        private: take other users' permissions away, because the settings hold a secret.

    Raises:
        SettingsError: the folder or the file cannot be written.
    """
    path = change.path.resolve()  # a symbolic link stays one
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        backup = None if change.before is None else copy_of(path)
        with explain_full_disk(path), staged_file(path, mode=0o600) as stage:  # it may hold a key
            if backup:
                shutil.copymode(path, stage)
            if private:
                stage.chmod(stage.stat().st_mode & 0o700)
            stage.write_bytes(change.text.encode())
    except OSError as error:
        raise SettingsError(f"{change.path} cannot be written: {error.strerror or error}; it is as it was") from error
    return backup


def copy_of(path: Path) -> Path:
    """Copy a file to an unused name in its folder, and return the copy's path."""
    stem = f"{path.name}.bak-{time.strftime('%Y%m%d-%H%M%S')}"
    names = (stem, *(f"{stem}-{i}" for i in range(1, 1000)))
    copy = next(free for name in names if not (free := path.with_name(name)).exists())
    shutil.copy2(path, copy)
    return copy


def read(path: Path) -> str | None:
    """Return a file's text, or None if there is no such file."""
    try:
        return read_regular(path).decode("utf-8-sig")  # read_text would change line ends
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise SettingsError(f"{path} cannot be read: {reason}; nothing was changed") from error


def merged(old: Any, new: Any, where: str) -> Any:
    """Return `old` with `new` merged into it: tables by key, lists of tables by the names of their entries."""
    if isinstance(old, dict) and isinstance(new, dict):
        return old | {key: merged(old.get(key), value, f"{where}: {key}") for key, value in new.items()}
    if isinstance(old, list) and isinstance(new, list):
        return with_entries(old, new, where) if all(isinstance(entry, dict) for entry in new) else new
    if old is not None and (isinstance(old, dict | list) or isinstance(new, dict | list)):
        expected, found = kind_of(new), kind_of(old)
        raise SettingsError(f"{where} is {found} there, and {expected} was expected; nothing was changed")
    return new


def kind_of(value: Any) -> str:
    """Return the type of a value in words."""
    return "a table" if isinstance(value, dict) else "a list" if isinstance(value, list) else "a plain value"


def with_entries(old: list[Any], new: list[dict[str, Any]], where: str) -> list[Any]:
    """Return a list with new entries. An entry of the same name is merged."""
    entries = list(old)
    for entry in new:
        name = next(key for key in NAMES if key in entry)
        same = [i for i, one in enumerate(entries) if isinstance(one, dict) and one.get(name) == entry[name]]
        if same:
            entries[same[0]] = merged(entries[same[0]], entry, where)
        else:
            entries.append(entry)
    return entries


def readable(parse: Parse, text: str) -> Any:
    """Return the parsed text, or None if it is not valid."""
    try:
        return parse(text)
    except (ValueError, RecursionError):
        return None


def parse_json(text: str) -> Any:
    """Return the value of JSON that may have comments and trailing commas."""
    without = COMMENT.sub(lambda match: match[1] or " ", text)
    return files.parse_json(LAST_COMMA.sub(lambda match: match[1] or "", without))


def json_texts(before: str, old: Any, new: Any, wanted: Any) -> Iterator[str]:
    """Yield the text with new keys after the first bracket; then, without comments, the file formatted anew."""
    blank = COMMENT.sub(lambda match: match[1] or " " * len(match[0]), before)
    start = blank.find("{") + 1
    inner = json.dumps(absent(old, new), indent=2, ensure_ascii=False)[1:-2]
    yield f"{before[:start]}{inner}{',' if old else ''}{before[start:]}"
    if readable(json.loads, before) is not None:
        indent = re.search(r"\n([ \t]+)", before)
        yield json.dumps(wanted, indent=indent[1] if indent else 2, ensure_ascii=False) + "\n"


def toml_texts(before: str, _: Any, new: Any, __: Any) -> Iterator[str]:
    """Yield the text with each key replaced or added in its table. A missing table is added."""
    text = before if before.endswith("\n") else before + "\n"
    for table, values in tables(new):
        header = f"[{table}]\n" if table else ""
        if f"\n{header}" not in f"\n{text}":
            text += f"\n{header}"
        start = f"\n{text}".index(f"\n{header}") + len(header)
        following = re.compile(r"^\[", re.MULTILINE).search(text, start)
        end = following.start() if following else len(text)
        text = text[:start] + with_lines(text[start:end], values) + text[end:]
    yield text


def with_lines(lines: str, values: dict[str, Any]) -> str:
    """Return the lines of a table with its keys replaced or added."""
    for key, value in reversed(values.items()):
        line = f"{key} = {json.dumps(value, ensure_ascii=False)}\n"
        match = re.search(rf"^{re.escape(key)}[ \t]*=.*\n", lines, re.MULTILINE)
        lines = lines[: match.start()] + line + lines[match.end() :] if match else line + lines
    return lines


def tables(values: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield a table and its nested tables as (path, plain values). Tables without plain values are left out."""
    if plain := {key: value for key, value in values.items() if not isinstance(value, dict)}:
        yield path, plain
    for key, value in values.items():
        if isinstance(value, dict):
            yield from tables(value, f"{path}.{key}" if path else key)


def parse_yaml(text: str) -> Any:
    """Return the value of YAML.

    Raises:
        ValueError: the text is not valid.
    """
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def yaml_texts(before: str, old: Any, new: Any, wanted: Any) -> Iterator[str]:
    """Yield the text with new keys and list entries at its end; then, without comments, the file formatted anew."""
    import yaml

    for values in (absent(old, new), wanted):
        dumped = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=1000)
        if values is not wanted:
            yield before.rstrip("\n") + "\n" + dumped
        elif not re.search(r"(^|\s)#", before):
            yield dumped


def absent(old: Any, new: Any) -> Any:
    """Return the keys or entries of `new` that `old` lacks."""
    if isinstance(new, dict):
        return {key: value for key, value in new.items() if key not in (old or {})}
    return [entry for entry in new if entry not in (old or [])]


FORMATS: dict[str, tuple[Parse, Callable[[str, Any, Any, Any], Iterator[str]]]] = {
    "json": (parse_json, json_texts),
    "toml": (tomllib.loads, toml_texts),
    "yaml": (parse_yaml, yaml_texts),
}
