"""Saved chats: one file of JSON lines each, written as the chat goes on.

The first record is the header; then come the messages, and a `rewind` where turns were removed. An incomplete answer is
in a sidecar file `.partial`, rewritten about once a second and deleted once the answer's record is written. A crash
costs no more than the last second.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlxmtp.files import data_folder, read_json, read_regular, staged_file, try_lock
from mlxmtp_tui.conversation import Answer, Conversation
from mlxmtp_tui.records import SessionError, answer_record, line, read, read_answer, without_cut_line

__all__ = ["SavedChat", "Session", "SessionError", "find", "folder", "model_of", "read", "saved"]

VERSION = 1
"""Of the file format, in the header."""


def folder() -> Path:
    """The folder of the saved chats."""
    return data_folder() / "chats"


@dataclass(frozen=True)
class SavedChat:
    """A saved chat in a list.

    Args:
        id: stem of the file's name.
        turns: number of turns.
        changed: time of the last write, local.
    """

    id: str
    file: Path
    title: str
    model: str
    turns: int
    changed: datetime


class Session:
    """The file of one chat. Nothing is written before the first message.

    Writing never raises: a record that cannot be written is tried again with the next one.

    Attributes:
        problem: why the last write failed; None where it succeeded.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.problem: str | None = None
        self._fd: int | None = None
        self._pending: list[bytes] = []

    @classmethod
    def new(cls, model: str, root: Path | None = None) -> Session:
        """A new file in the folder `root`, named after the time."""
        now = datetime.now(UTC)
        session = cls((root or folder()) / f"{now:%Y%m%d-%H%M%S}-{os.urandom(2).hex()}.jsonl")
        created = now.isoformat(timespec="seconds")
        session._pending.append(line({"type": "chat", "version": VERSION, "model": model, "created": created}))
        return session

    @classmethod
    def resume(cls, file: Path) -> tuple[Session, Conversation]:
        """Open a saved chat. An incomplete answer that a crash left becomes the answer of its turn.

        Raises:
            SessionError: the file is not a chat, or another mlxmtp has it open.
        """
        session = cls(file)
        _, conversation = read(file)
        session._open()
        if session.problem:
            raise SessionError(session.problem)
        session._remove_cut_line()
        if conversation.unanswered and (partial := _partial_answer(file, len(conversation.turns))):
            conversation.answer(partial)
            session.write_answer(partial)
        return session, conversation

    @property
    def id(self) -> str:
        return self.file.stem

    def write_user(self, typed: str, sent: str) -> None:
        self._write(role="user", content=typed, **({} if sent == typed else {"sent": sent}))

    def write_partial(self, turn: int, answer: Answer) -> None:
        """Write the incomplete answer to turn number `turn`, counted from 1, to the sidecar file."""
        if self._pending:
            self._write_pending()
        try:
            with staged_file(self._partial_file, mode=0o600) as stage:
                stage.write_bytes(line({"turn": turn, **answer_record(answer)}))
        except OSError as error:
            self._fail(error)
        else:
            if not self._pending:
                self.problem = None

    def write_answer(self, answer: Answer) -> None:
        self._write(**answer_record(answer))
        if not self._pending:
            with suppress(OSError):
                self._partial_file.unlink()

    def write_rewind(self, turns: int) -> None:
        self._write(type="rewind", turns=turns)

    def write_system(self, text: str) -> None:
        self._write(role="system", content=text)

    def write_title(self, text: str) -> None:
        """Set the title of the chat in the list."""
        self._write(type="title", text=text)

    def write_model(self, name: str) -> None:
        self._write(type="model", name=name)

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    @property
    def _partial_file(self) -> Path:
        return self.file.with_suffix(".partial")

    def _write(self, **record: Any) -> None:
        self._pending.append(line(record))
        self._write_pending()

    def _write_pending(self) -> None:
        """Write all pending records or none: half a line would make the file invalid."""
        self._open()
        if self._fd is None:
            return
        before = os.fstat(self._fd).st_size
        content = b"".join(self._pending)
        try:
            while content:
                content = content[os.write(self._fd, content) :]
        except OSError as error:
            self._fail(error)
            with suppress(OSError):
                os.ftruncate(self._fd, before)
        else:
            self._pending.clear()
            self.problem = None

    def _open(self) -> None:
        if self._fd is not None:
            return
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(self.file, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        except OSError as error:
            self._fail(error)
            return
        if not try_lock(self._fd):
            self.close()
            self.problem = f"{self.file}: this chat is open in another mlxmtp; close it there, or begin a new one"

    def _remove_cut_line(self) -> None:
        """Remove a last line that a crash cut short; the next record would be joined to it."""
        content = read_regular(self.file)
        complete = without_cut_line(content)
        if len(complete) < len(content):
            os.truncate(self.file, len(complete))
        elif self._fd is not None:
            with suppress(OSError):
                os.write(self._fd, complete[len(content) :])

    def _fail(self, error: OSError) -> None:
        self.problem = f"the chat is not saved: {error}"


def saved(root: Path | None = None) -> list[SavedChat]:
    """All saved chats, the newest first. Files that are not chats are left out."""
    chats = []
    for file in (root or folder()).glob("*.jsonl"):
        try:
            header, conversation = read(file)
            changed = datetime.fromtimestamp(file.stat().st_mtime)
        except (SessionError, OSError):
            continue
        title = header.get("title") or conversation.title
        chats.append(SavedChat(file.stem, file, title, header.get("model", ""), len(conversation.turns), changed))
    return sorted(chats, key=lambda chat: chat.changed, reverse=True)


def find(name: str | None, root: Path | None = None) -> Path:
    """The file of a saved chat.

    Args:
        name: id, title or path of the chat; None for the newest.

    Raises:
        SessionError: there is no such chat.
    """
    if name and (file := _as_file(name)):
        return file
    chats = saved(root)
    for chat in chats:
        if name is None or name in (chat.id, chat.title):
            return chat.file
    where = root or folder()
    if not chats:
        raise SessionError(f"no saved chat in {where}")
    raise SessionError(f"no saved chat is called {name!r}; the newest of {len(chats)} in {where} is {chats[0].id}")


def model_of(file: Path) -> str | None:
    """The model of a saved chat."""
    return read(file)[0].get("model")


def _as_file(name: str) -> Path | None:
    try:
        file = Path(name).expanduser()
        return file if file.is_file() else None
    except (OSError, ValueError, RuntimeError):  # not a file's name; an unknown home
        return None


def _partial_answer(file: Path, turn: int) -> Answer | None:
    """The incomplete answer to a turn that a crash left; None without one."""
    try:
        record = read_json(file.with_suffix(".partial"))
        return read_answer(record) if record.get("turn") == turn else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
