"""Files mentioned in a prompt as @path: inserted into it, and completed while the user types."""

from __future__ import annotations

import os
import re
from pathlib import Path

from mlxmtp.errors import MlxmtpError
from mlxmtp.files import read_regular
from mlxmtp.units import size

MAX_BYTES = 2_000_000
"""Most bytes of a file that is inserted into a prompt; more than any context holds."""
MENTION = re.compile(r'(?<![\w@])@(?:"([^"\n]+)"|([^\s"@][^\s"]*))')
MAX_COMPLETIONS = 50
"""Most completions that are offered."""


class MentionError(MlxmtpError):
    """A file mentioned in the prompt cannot be inserted."""


def expand_mentions(prompt: str) -> str:
    """The prompt, followed by the contents of the files that it mentions.

    Mentions that are no files, such as addresses and handles, stay as they are.

    Raises:
        MentionError: a file is too large, or is not text.
    """
    blocks = []
    for name, path in dict(_mentions(prompt)).items():
        blocks.append(f"{name}:\n{_fenced(_text(path), path.suffix.lstrip('.'))}")
    return "\n\n".join([prompt, *blocks])


def missing_files(prompt: str) -> list[str]:
    """The mentions that look like a file's name but are no file; they stay in the prompt as they are."""
    found = {name for name, _ in _mentions(prompt)}
    named = ((match[1] or match[2]).rstrip(".,;:!?)]}") for match in MENTION.finditer(prompt))
    return [f"@{name}" for name in dict.fromkeys(named) if name not in found and re.search(r"/|\.\w", name)]


def completions(word: str) -> list[str]:
    """The mentions that begin with `word` (its @ included): paths as the user would type them, folders with a slash."""
    typed = word[1:].removeprefix('"')
    folder, _, start = typed.rpartition("/")
    base = Path(os.path.expanduser(folder or ("/" if typed.startswith("/") else ".")))
    try:
        entries = sorted(os.scandir(base), key=lambda entry: (not _is_dir(entry), entry.name.lower()))
    except OSError:
        return []
    prefix = f"{folder}/" if folder or typed.startswith("/") else ""
    found = []
    for entry in entries:
        if (
            _is_text(entry.name)
            and entry.name.lower().startswith(start.lower())
            and (start.startswith(".") or not entry.name.startswith("."))
        ):
            path = prefix + entry.name + ("/" if _is_dir(entry) else "")
            found.append(_mention(path))
    return found[:MAX_COMPLETIONS]


def _mention(path: str) -> str:
    """A path as the user would type it. The quotes of a folder stay open: a file of it can follow."""
    if not any(character.isspace() for character in path):
        return f"@{path}"
    return f'@"{path}' if path.endswith("/") else f'@"{path}"'


def _is_text(name: str) -> bool:
    """Whether a file's name can be typed. Bytes that are not UTF-8 are half surrogate pairs in it."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def _mentions(prompt: str) -> list[tuple[str, Path]]:
    """The mentions that are files, and their paths."""
    found = []
    for match in MENTION.finditer(prompt):
        name = match[1] or match[2]
        for candidate in (name, name.rstrip(".,;:!?)]}")):
            if path := _file(candidate):
                found.append((candidate, path))
                break
    return found


def _text(path: Path) -> str:
    try:
        if (nbytes := path.stat().st_size) > MAX_BYTES:
            raise MentionError(f"{path}: {size(nbytes)}; a file in a prompt can have {size(MAX_BYTES)} at most")
        text = read_regular(path, MAX_BYTES).decode()  # a file of /proc has no size
    except OSError as error:
        raise MentionError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise MentionError(f"{path}: not a text file ({error.reason}); expected UTF-8") from error
    if "\0" in text:
        raise MentionError(f"{path}: not a text file (it holds zero bytes)")
    return text


def _fenced(text: str, language: str) -> str:
    longest = max((len(ticks) for ticks in re.findall(r"`{3,}", text)), default=2)
    fence = "`" * (longest + 1)
    return f"{fence}{language}\n{text.rstrip(chr(10))}\n{fence}"


def _file(name: str) -> Path | None:
    try:
        path = Path(name).expanduser()
        return path if path.is_file() else None
    except (OSError, ValueError, RuntimeError):  # not a file's name; an unknown home
        return None


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False
