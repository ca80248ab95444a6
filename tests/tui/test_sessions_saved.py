"""ChatPicker on disk after a crash, on a full disk, and between two processes."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from mlxmtp_tui.conversation import Answer
from mlxmtp_tui.sessions import Session, SessionError, read, saved

from tests.tui.harness import answer, message, saved_chat, stats
from tests.tui.test_sessions import records

REPO = Path(__file__).resolve().parents[2]


@contextmanager
def room_for(bytes_left: int, file: Path) -> Iterator[None]:
    """A disk that takes so many bytes more in `file`: the system refuses the rest, as it does on a full one."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size + bytes_left, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# -- a crash while an answer comes ------------------------------------------------------------------------------


def crashed(turns: int = 1, partial: str = "so far 🙂") -> Path:
    """A chat whose last answer was still coming when the process was killed."""
    session = Session.new("demo")
    for i in range(turns):
        session.write_user(f"question {i}", f"question {i}")
        if i < turns - 1:
            session.write_answer(answer(f"answer {i}"))
    session.write_partial(turns, Answer(message(partial, "thought"), "interrupted", stats(40)))
    session.close()
    return session.file


def test_an_answer_cut_off_by_a_crash_is_taken_in_once() -> None:
    file = crashed(2)
    partial = file.with_suffix(".partial")
    assert partial.exists()
    session, conversation = Session.resume(file)
    session.close()
    lost = conversation.turns[-1].answer
    assert lost is not None
    assert (lost.text, lost.thinking, lost.reason, lost.stats) == ("so far 🙂", "thought", "interrupted", stats(40))
    assert not partial.exists()
    assert [kind.get("role") for kind in records(file)] == [None, "user", "assistant", "user", "assistant"]
    before = file.read_bytes()
    again, conversation = Session.resume(file)
    again.close()
    assert conversation.turns[-1].answer == lost
    assert file.read_bytes() == before


def test_what_came_of_an_older_turn_is_not_taken_for_the_newest() -> None:
    file = crashed(1)
    partial = file.with_suffix(".partial").read_bytes()
    session, _ = Session.resume(file)
    session.write_user("next", "next")
    session.close()
    file.with_suffix(".partial").write_bytes(partial)  # as if its removal had not reached the disk
    session, conversation = Session.resume(file)
    session.close()
    assert [turn.answer.text if turn.answer else None for turn in conversation.turns] == ["so far 🙂", None]


def test_what_came_of_a_turn_that_has_its_answer_is_not_taken_over_it() -> None:
    file = crashed(1)
    partial = file.with_suffix(".partial").read_bytes()
    session, _ = Session.resume(file)
    session.write_rewind(0)
    session.write_user("again", "again")
    session.write_answer(answer("the whole"))
    session.close()
    file.with_suffix(".partial").write_bytes(partial)
    session, conversation = Session.resume(file)
    session.close()
    assert conversation.turns[-1].answer == answer("the whole")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"5", b'{"turn": 1}', b'{"turn": 1, "stats": 3}', b"\xff"])
def test_a_broken_partial_file_costs_the_partial_answer_only(content: bytes) -> None:
    file = crashed(1)
    file.with_suffix(".partial").write_bytes(content)
    session, conversation = Session.resume(file)
    session.close()
    assert [turn.answer for turn in conversation.turns] == [None]


def test_the_partial_answer_is_replaced_as_it_grows_and_never_half_written() -> None:
    file = crashed(1)
    session, _ = Session.resume(file)
    session.write_user("next", "next")
    for text in ("one", "one two"):
        session.write_partial(2, answer(text, "interrupted"))
        assert json.loads(file.with_suffix(".partial").read_text(encoding="utf-8"))["content"] == text
    session.write_answer(answer("one two three"))
    session.close()
    assert sorted(path.name for path in file.parent.iterdir()) == [file.name]


def test_partial_files_are_utf_8_wherever_they_are_written(tmp_path: Path) -> None:
    program = """
        import sys
        from mlxmtp_tui.conversation import Answer
        from mlxmtp_tui.sessions import Session
        from pathlib import Path
        session = Session.new("demo", Path(sys.argv[1]))
        session.write_user("a", "a")
        session.write_partial(1, Answer({"role": "assistant", "content": "🙂"}, "interrupted"))
        session.close()
        print(Session.resume(session.file)[1].turns[0].answer.text == "🙂")
    """
    # the warning is raised wherever the encoding is left to the locale, which is not UTF-8 everywhere
    command = [sys.executable, "-X", "warn_default_encoding", "-W", "error::EncodingWarning", "-c"]
    environment = {**os.environ, "PYTHONPATH": f"{REPO}:{REPO / 'tui'}"}
    ran = subprocess.run(
        [*command, textwrap.dedent(program), str(tmp_path)], capture_output=True, text=True, env=environment
    )
    assert ran.stdout.strip() == "True", ran.stderr


# -- a full disk ------------------------------------------------------------------------------------------------


def test_a_full_disk_is_told_and_what_was_not_written_is_written_when_there_is_room() -> None:
    session = Session.new("demo")
    session.write_user("first", "first")
    session.write_answer(answer("1"))
    before = session.file.read_bytes()
    with room_for(10, session.file):
        session.write_user("second " * 50, "second " * 50)
        assert session.problem is not None
        assert os.strerror(errno.EFBIG) in session.problem
        assert session.file.read_bytes() == before, "no half line stays"
        session.write_answer(answer("2"))
        assert session.problem
        assert session.file.read_bytes() == before
    session.write_user("third", "third")
    assert session.problem is None
    session.write_answer(answer("3"))
    session.close()
    records(session.file)
    _, conversation = read(session.file)
    assert [turn.typed for turn in conversation.turns] == ["first", "second " * 50, "third"]
    assert [turn.answer.text if turn.answer else None for turn in conversation.turns] == ["1", "2", "3"]


def test_a_disk_that_was_full_to_the_end_leaves_a_whole_file_behind() -> None:
    session = Session.new("demo")
    session.write_user("first", "first")
    with room_for(0, session.file):
        session.write_answer(answer("1"))
        session.close()
    assert len(records(session.file)) == 2


def test_a_disk_that_is_full_from_the_first_write_on(chats: Path) -> None:
    chats.mkdir(parents=True)
    session = Session.new("demo")
    session.file.touch()
    with room_for(0, session.file):
        session.write_user("first", "first")
        assert session.problem
    session.write_answer(answer("1"))
    assert session.problem is None
    session.close()
    assert [record.get("role") for record in records(session.file)] == [None, "user", "assistant"]


def test_a_full_disk_after_a_crash_mended_a_file_does_not_harm_it() -> None:
    file = saved_chat(1)
    sound = file.read_bytes()
    for rest in (b'{"role": "user", "content": "ha', b'{"role": "user", "content": "half"}'):
        file.write_bytes(sound + rest)
        session, conversation = Session.resume(file)
        mended = file.read_bytes()
        with room_for(0, file):
            session.write_user("next", "next")
            session.close()
        assert session.problem
        assert file.read_bytes() == mended
        assert read(file)[1] == conversation


def test_a_folder_that_cannot_be_made_is_told_and_tried_again(chats: Path) -> None:
    chats.parent.mkdir(parents=True)
    chats.write_text("a file where the folder should be")
    session = Session.new("demo")
    session.write_user("first", "first")
    session.write_partial(1, answer("so", "interrupted"))
    session.write_answer(answer("1"))
    assert session.problem is not None
    assert "not saved" in session.problem
    chats.unlink()
    session.write_user("second", "second")
    assert session.problem is None
    session.close()
    assert [turn.typed for turn in read(session.file)[1].turns] == ["first", "second"]


def test_a_partial_answer_that_was_written_does_not_hide_records_that_were_not() -> None:
    session = Session.new("demo")
    session.write_user("first", "first")
    with room_for(0, session.file):
        session.write_answer(answer("1"))
    assert session.problem
    session.write_partial(2, answer("x", "interrupted"))  # there is room again, but what is due was not written yet
    assert session.problem or len(records(session.file)) == 3
    session.close()


def test_a_partial_answer_without_room_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session.new("demo")
    session.write_user("first", "first")

    def full(*_: Any, **__: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        patch.setattr(Path, "write_bytes", full)
        session.write_partial(1, answer("so far", "interrupted"))
        assert session.problem is not None
        assert os.strerror(errno.ENOSPC) in session.problem
    session.write_partial(1, answer("so far", "interrupted"))
    assert session.problem is None
    session.close()


# -- two processes ----------------------------------------------------------------------------------------------


def test_a_chat_that_is_open_elsewhere_is_refused_until_it_is_closed_there() -> None:
    file = saved_chat(1)
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from pathlib import Path; from mlxmtp_tui.sessions import Session\n"
            "session, _ = Session.resume(Path(sys.argv[1])); print('open', flush=True); sys.stdin.read()",
            str(file),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": f"{REPO}:{REPO / 'tui'}"},
    )
    assert holder.stdin
    assert holder.stdout
    try:
        assert holder.stdout.readline() == b"open\n"
        before = file.read_bytes()
        with pytest.raises(SessionError, match="open in another mlxmtp; close it there"):
            Session.resume(file)
        assert file.read_bytes() == before
        holder.kill()  # not closed but killed: the lock goes with the process
        holder.wait()
        session, _ = Session.resume(file)
        session.write_user("mine", "mine")
        assert session.problem is None
        session.close()
    finally:
        holder.kill()
        holder.communicate()


def test_a_chat_that_was_refused_can_still_be_read_and_listed() -> None:
    file = saved_chat(2)
    session, _ = Session.resume(file)
    with pytest.raises(SessionError, match="open in another"):
        Session.resume(file)
    assert [chat.turns for chat in saved()] == [2]
    session.close()
    Session.resume(file)[0].close()
