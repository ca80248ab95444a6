"""Conversations on disk: one JSON-lines file each, written as they go.

A file begins with what the chat is; then come its messages, a line each, and `rewind` where a turn was taken back.
The answer that is being written stands in a file `.partial` beside it, brought up to date every second and removed
with the answer's own line: a crash loses no more than that.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from mlxmtp.decoding.stats import Stats
from mlxmtp.errors import MlxmtpError
from mlxmtp_tui.conversation import Answer, Conversation, Message

VERSION = 1


class SessionError(MlxmtpError):
    """A saved chat that is not there, cannot be read, or is open elsewhere."""


def folder() -> Path:
    """Where chats are kept."""
    from platformdirs import user_data_path

    return user_data_path("mlxmtp", appauthor=False) / "chats"


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
        self._out: TextIO | None = None
        self._due: list[str] = []

    @classmethod
    def new(cls, model: str, root: Path | None = None) -> Session:
        now = datetime.now(UTC)
        session = cls((root or folder()) / f"{now:%Y%m%d-%H%M%S}-{os.urandom(2).hex()}.jsonl")
        session._note(type="chat", version=VERSION, model=model, created=now.isoformat(timespec="seconds"))
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
        _mend(file)
        open_turn = bool(conversation.turns) and conversation.turns[-1].answer is None
        if open_turn and (lost := _partial(file, len(conversation.turns))):
            conversation.answer(lost)
            session.answered(lost)
        return session, conversation

    @property
    def id(self) -> str:
        return self.file.stem

    def asked(self, typed: str, sent: str) -> None:
        sent_too = {} if sent == typed else {"sent": sent}
        self._write(role="user", content=typed, **sent_too)

    def answering(self, turn: int, answer: Answer) -> None:
        """What of the answer to turn number `turn` has come so far."""
        try:
            temporary = self._partial_file.with_suffix(".partial~")
            temporary.write_text(json.dumps({"turn": turn, **_record(answer)}, ensure_ascii=False))
            temporary.replace(self._partial_file)
            self.problem = None
        except OSError as error:
            self.problem = f"the chat is not saved: {error}"

    def answered(self, answer: Answer) -> None:
        self._write(**_record(answer))
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
        if self._out:
            self._out.close()
            self._out = None

    @property
    def _partial_file(self) -> Path:
        return self.file.with_suffix(".partial")

    def _note(self, **record: Any) -> None:
        self._due.append(json.dumps(record, ensure_ascii=False) + "\n")

    def _write(self, **record: Any) -> None:
        self._note(**record)
        self._open()
        if not self._out:
            return
        whole = self._out.tell()
        try:
            self._out.write("".join(self._due))
            self._out.flush()
            self._due.clear()
            self.problem = None
        except OSError as error:
            self.problem = f"the chat is not saved: {error}"
            self.close()  # its buffer holds what did not fit
            self._cut(whole)

    def _open(self) -> None:
        if self._out:
            return
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self._out = self.file.open("a", encoding="utf-8")
            fcntl.flock(self._out, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            self.problem = f"{self.file}: this chat is open in another mlxmtp; close it there, or begin a new one"
        except OSError as error:
            self.close()
            self.problem = f"the chat is not saved: {error}"

    def _cut(self, length: int) -> None:
        """Take back half a line."""
        try:
            os.truncate(self.file, length)
        except OSError as error:
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
    if name and (file := Path(name).expanduser()).is_file():
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


def read(file: Path) -> tuple[dict[str, Any], Conversation]:
    """What the chat is (model, title), and what was said.

    Raises:
        SessionError: the file is no chat. A last line that a crash cut short is left out.
    """
    head: dict[str, Any] = {}
    conversation = Conversation()
    try:
        for number, record in enumerate(_records(file)):
            if number == 0 and record.get("type") != "chat":
                raise SessionError(f"{file}: no chat of mlxmtp; expected a first line with type chat")
            _take(record, head, conversation)
    except (OSError, UnicodeDecodeError) as error:
        raise SessionError(f"{file}: cannot be read ({error})") from error
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise SessionError(f"{file}: a record of this chat is incomplete ({error!r})") from error
    if not head:
        raise SessionError(f"{file}: empty; expected a chat of mlxmtp")
    return head, conversation


def _records(file: Path) -> Iterator[dict[str, Any]]:
    lines = file.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            yield json.loads(line)
        except ValueError as error:
            if number < len(lines):
                raise SessionError(f"{file}, line {number}: not valid JSON ({error})") from error


def _take(record: dict[str, Any], head: dict[str, Any], conversation: Conversation) -> None:
    match record.get("role") or record.get("type"):
        case "chat":
            head.update(model=record["model"], created=record["created"])
        case "model":
            head["model"] = record["name"]
        case "title":
            head["title"] = record["text"]
        case "system":
            conversation.system = record["content"]
        case "user":
            conversation.ask(record["content"], record.get("sent", record["content"]))
        case "assistant":
            conversation.answer(_answer(record))
        case "rewind":
            conversation.rewind(record["turns"])


def _record(answer: Answer) -> dict[str, Any]:
    """An answer as a line: the message, then how it came."""
    stats = asdict(answer.stats) if answer.stats else None
    return {**answer.message, "finish": answer.reason, "speedup": answer.speedup, "stats": stats}


def _answer(record: dict[str, Any]) -> Answer:
    stats = record.get("stats")
    if stats:
        stats = Stats(**stats | {"acceptance_by_depth": tuple(stats["acceptance_by_depth"])})
    message: Message = {
        key: record[key] for key in ("role", "content", "reasoning_content", "tool_calls") if key in record
    }
    return Answer(message, record["finish"], stats or None, record.get("speedup"))


def _mend(file: Path) -> None:
    """Take away a last line that a crash cut short, or the next one would be written behind it."""
    content = file.read_bytes()
    if content.endswith(b"\n"):
        return
    start = content.rfind(b"\n") + 1
    try:
        json.loads(content[start:])
    except ValueError:
        os.truncate(file, start)
    else:
        with file.open("a") as out:
            out.write("\n")


def _partial(file: Path, turn: int) -> Answer | None:
    """What a crash left of the answer to a turn."""
    try:
        record = json.loads(file.with_suffix(".partial").read_text())
        return _answer(record) if record.get("turn") == turn else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
