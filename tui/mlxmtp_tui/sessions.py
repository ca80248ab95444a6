"""Conversations on disk: one JSON-lines file each, written as they go.

A file begins with what the chat is; then come its messages, a line each, and `rewind` where a turn was taken back.
The answer that is being written stands in a file `.partial` beside it, brought up to date every second and removed
with the answer's own line: a crash loses no more than that.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlxmtp.files import data_folder, staged_file, try_lock
from mlxmtp_tui.conversation import Answer, Conversation
from mlxmtp_tui.records import SessionError, answer_of, line, read, record_of, whole

__all__ = ["Saved", "Session", "SessionError", "find", "folder", "model_of", "read", "saved"]

VERSION = 1


def folder() -> Path:
    """Where chats are kept."""
    return data_folder() / "chats"


@dataclass(frozen=True)
class Saved:
    """A chat on disk, as a list shows it."""

    id: str
    file: Path
    title: str
    model: str
    turns: int
    changed: datetime


class Session:
    """The file of one chat. Nothing is written before the first message.

    Writing never raises: what could not be written is tried again with the next record, and `problem` says why.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.problem: str | None = None
        self._out: int | None = None
        self._due: list[bytes] = []

    @classmethod
    def new(cls, model: str, root: Path | None = None) -> Session:
        now = datetime.now(UTC)
        session = cls((root or folder()) / f"{now:%Y%m%d-%H%M%S}-{os.urandom(2).hex()}.jsonl")
        created = now.isoformat(timespec="seconds")
        session._due.append(line({"type": "chat", "version": VERSION, "model": model, "created": created}))
        return session

    @classmethod
    def resume(cls, file: Path) -> tuple[Session, Conversation]:
        """A chat to go on with; an answer that was cut off by a crash is taken in.

        Raises:
            SessionError: the file is no chat, or another mlxmtp has it open.
        """
        session = cls(file)
        _, conversation = read(file)
        session._open()
        if session.problem:
            raise SessionError(session.problem)
        session._mend()
        if conversation.unanswered and (lost := _partial(file, len(conversation.turns))):
            conversation.answer(lost)
            session.answered(lost)
        return session, conversation

    @property
    def id(self) -> str:
        return self.file.stem

    def asked(self, typed: str, sent: str) -> None:
        self._write(role="user", content=typed, **({} if sent == typed else {"sent": sent}))

    def answering(self, turn: int, answer: Answer) -> None:
        """What of the answer to turn number `turn` has come so far."""
        if self._due:
            self._write_due()
        try:
            with staged_file(self._partial_file, mode=0o600) as stage:
                stage.write_bytes(line({"turn": turn, **record_of(answer)}))
        except OSError as error:
            self._fail(error)
        else:
            if not self._due:
                self.problem = None

    def answered(self, answer: Answer) -> None:
        self._write(**record_of(answer))
        if not self._due:
            with suppress(OSError):
                self._partial_file.unlink()

    def rewound(self, turns: int) -> None:
        self._write(type="rewind", turns=turns)

    def system(self, text: str) -> None:
        self._write(role="system", content=text)

    def title(self, text: str) -> None:
        """What the list calls the chat."""
        self._write(type="title", text=text)

    def model(self, name: str) -> None:
        self._write(type="model", name=name)

    def close(self) -> None:
        if self._out is not None:
            os.close(self._out)
            self._out = None

    @property
    def _partial_file(self) -> Path:
        return self.file.with_suffix(".partial")

    def _write(self, **record: Any) -> None:
        self._due.append(line(record))
        self._write_due()

    def _write_due(self) -> None:
        """All or nothing: half a line would spoil the file."""
        self._open()
        if self._out is None:
            return
        before = os.fstat(self._out).st_size
        content = b"".join(self._due)
        try:
            while content:
                content = content[os.write(self._out, content) :]
        except OSError as error:
            self._fail(error)
            with suppress(OSError):
                os.ftruncate(self._out, before)
        else:
            self._due.clear()
            self.problem = None

    def _open(self) -> None:
        if self._out is not None:
            return
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self._out = os.open(self.file, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        except OSError as error:
            self._fail(error)
            return
        if not try_lock(self._out):
            self.close()
            self.problem = f"{self.file}: this chat is open in another mlxmtp; close it there, or begin a new one"

    def _mend(self) -> None:
        """Take away a last line that a crash cut short, or the next one would be written behind it."""
        content = self.file.read_bytes()
        sound = whole(content)
        if len(sound) < len(content):
            os.truncate(self.file, len(sound))
        elif self._out is not None:
            with suppress(OSError):
                os.write(self._out, sound[len(content) :])

    def _fail(self, error: OSError) -> None:
        self.problem = f"the chat is not saved: {error}"


def saved(root: Path | None = None) -> list[Saved]:
    """All chats, the newest first; files that are none are left out."""
    chats = []
    for file in (root or folder()).glob("*.jsonl"):
        try:
            head, conversation = read(file)
            changed = datetime.fromtimestamp(file.stat().st_mtime)
        except (SessionError, OSError):
            continue
        title = head.get("title") or conversation.title
        chats.append(Saved(file.stem, file, title, head.get("model", ""), len(conversation.turns), changed))
    return sorted(chats, key=lambda chat: chat.changed, reverse=True)


def find(name: str | None, root: Path | None = None) -> Path:
    """The file of a chat by its id, its title or a file's path; None: the newest.

    Raises:
        SessionError: there is none.
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
    """The model of a chat, to load it again."""
    return read(file)[0].get("model")


def _as_file(name: str) -> Path | None:
    try:
        file = Path(name).expanduser()
        return file if file.is_file() else None
    except (OSError, ValueError, RuntimeError):  # a name that no file can have; a home that nobody has
        return None


def _partial(file: Path, turn: int) -> Answer | None:
    """What a crash left of the answer to a turn."""
    try:
        record = json.loads(file.with_suffix(".partial").read_bytes())
        return answer_of(record) if record.get("turn") == turn else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
