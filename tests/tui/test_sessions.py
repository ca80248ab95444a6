"""Chats on disk: read back as they were, whatever a crash, a full disk or a second process did to them."""

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
from mlxmtp_tui.conversation import Answer, Conversation
from mlxmtp_tui.sessions import Session, SessionError, find, folder, model_of, read, saved

from tests.tui.scripted import answer, message, saved_chat, stats

REPO = Path(__file__).resolve().parents[2]
EVERYTHING = 'Grüße 👩‍👩‍👧 家族 \t "quoted" \\ back `code`\r\nnew line \0 zero \x1b[31m'
# what str.splitlines takes for the end of a line, and JSON does not escape
LINE_ENDS = "next\x85line\u2028separator\u2029paragraph\x0bvertical\x0cfeed\x1cfile"


def full_chat(root: Path | None = None) -> tuple[Path, Conversation]:
    """A chat with all that a chat can have, and what is expected of it."""
    session = Session.new("owner/name", root)
    expected = Conversation("Be short. 🙂")
    session.system(expected.system)
    expected.ask(EVERYTHING, EVERYTHING + "\n\na.txt:\n```txt\nhello\n```")
    session.asked(EVERYTHING, expected.turns[-1].sent)
    calls = [("weather", {"city": "Zürich", "days": [1, 2]}), ("time", {})]
    replies = [
        Answer(message("It says **hello**. 🙂", "Let me look …\nat it", calls), "stop", stats(), 1.49),
        Answer(message(""), "interrupted"),
        Answer(message("cut"), "length", stats(3, acceptance_by_depth=(), drafted=0)),
    ]
    expected.answer(replies[0])
    session.answered(replies[0])
    for typed, reply in (("taken back", replies[1]), ("second", replies[2])):
        session.asked(typed, typed)
        session.answered(reply)
        if typed == "taken back":
            session.rewound(1)
    expected.ask("second", "second")
    expected.answer(replies[2])
    session.title("Greetings 🎉")
    session.model("other/name")
    session.close()
    return session.file, expected


@contextmanager
def room_for(bytes_left: int, file: Path) -> Iterator[None]:
    """A disk that takes so many bytes more in `file`: the system refuses the rest, as it does on a full one."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size + bytes_left, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def records(file: Path) -> list[dict[str, Any]]:
    """Each line by itself, read as strictly as another program would."""
    content = file.read_bytes()
    assert content.endswith(b"\n"), content[-80:]
    return [json.loads(line) for line in content.split(b"\n")[:-1]]


# -- what is written and read -----------------------------------------------------------------------------------


def test_everything_comes_back_as_it_was() -> None:
    file, expected = full_chat()
    head, conversation = read(file)
    assert conversation == expected
    assert (head["model"], head["title"]) == ("other/name", "Greetings 🎉")
    assert model_of(file) == "other/name"
    answers = [turn.answer for turn in conversation.turns]
    assert answers[0] is not None
    assert answers[0].stats == stats(), "with acceptance_by_depth as the tuple that it is"
    assert answers[0].calls == [
        {"name": "weather", "arguments": {"city": "Zürich", "days": [1, 2]}},
        {"name": "time", "arguments": {}},
    ]


def test_every_line_is_a_record_that_says_what_it_is() -> None:
    found = records(full_chat()[0])
    assert found[0]["type"] == "chat"
    assert found[0]["version"] == 1
    kinds = [record.get("role") or record["type"] for record in found]
    assert kinds == [
        *("chat", "system", "user", "assistant", "user", "assistant", "rewind"),
        *("user", "assistant", "title", "model"),
    ]


def test_emoji_are_written_as_they_are_so_that_people_can_read_and_search_the_file() -> None:
    assert "家族" in full_chat()[0].read_text(encoding="utf-8")


def test_the_line_ends_of_unicode_are_text_and_end_no_record() -> None:
    session = Session.new("demo")
    session.asked(LINE_ENDS, LINE_ENDS)
    session.answered(answer(LINE_ENDS))
    session.close()
    assert [record.get("content") for record in records(session.file)] == [None, LINE_ENDS, LINE_ENDS]
    _, conversation = read(session.file)
    assert conversation.messages() == [
        {"role": "user", "content": LINE_ENDS},
        {"role": "assistant", "content": LINE_ENDS},
    ]
    assert len(saved()) == 1


def test_half_a_surrogate_pair_is_saved_like_any_text() -> None:
    """A file's name that is no UTF-8 comes in as such through completion."""
    session = Session.new("demo")
    session.asked("look at \udcff", "look at \udcff")
    session.answered(answer("hm"))
    session.close()
    assert session.problem is None
    assert len(read(session.file)[1].turns) == 1


def test_nothing_is_written_before_the_first_message(chats: Path) -> None:
    session = Session.new("demo")
    session.close()
    assert not chats.exists()
    assert folder() == chats
    session.asked("a", "a")
    assert session.file.parent == chats


def test_a_chat_goes_on_where_it_was() -> None:
    file, expected = full_chat()
    session, conversation = Session.resume(file)
    assert conversation == expected
    session.asked("third", "third")
    session.answered(answer("3"))
    session.close()
    assert [turn.typed for turn in read(file)[1].turns] == [EVERYTHING, "second", "third"]
    records(file)


def test_a_record_of_a_later_version_is_passed_over() -> None:
    file = saved_chat(1)
    with file.open("a") as out:
        out.write('{"type": "mood", "text": "good"}\n')
    assert len(read(file)[1].turns) == 1


# -- files that are none, or not whole --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"[]\n",
        b"5\n",
        b"null\n",
        b"hello\nthere\n",
        b'{"type": "user"}\n',
        b'{"role": "user", "content": "a"}\n',
        b'{"type": "chat"}\n',
        b"\xff\xfe\x00",
        b'{"type": "chat", "model": "m", "created": "x"}\n{"role": "assistant", "content": "a", "finish": "stop"}\n',
        b'{"type": "chat", "model": "m", "created": "x"}\nhalf\n{"role": "user", "content": "a"}\n',
        b'{"type": "chat", "model": "m", "created": "x"}\n{"role": "user"}\n',
        b'{"type": "chat", "model": "m", "created": "x"}\n[1]\n{"role": "user", "content": "a"}\n',
        b'{"type": "chat", "model": "m", "created": "x"}\n{"role": "user", "content": "a"}\n'
        b'{"role": "assistant", "content": "a", "finish": "stop", "stats": {"tokens": 1}}\n',
    ],
)
def test_what_is_no_chat_is_refused_by_name_and_left_as_it_is(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "some.jsonl"
    file.write_bytes(content)
    for look in (read, Session.resume, model_of):
        with pytest.raises(SessionError, match=r"some\.jsonl"):
            look(file)
    assert file.read_bytes() == content
    assert saved(tmp_path) == [], "and it is in no list"


def test_a_file_that_is_not_there_or_a_folder_is_refused(tmp_path: Path) -> None:
    for place in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(SessionError, match="cannot be read"):
            Session.resume(place)
    assert not (tmp_path / "none.jsonl").exists()


def test_a_file_cut_at_any_byte_is_read_up_to_its_last_whole_record_and_goes_on_soundly(tmp_path: Path) -> None:
    file, _ = full_chat(tmp_path)
    content = file.read_bytes()
    ends = [i for i, byte in enumerate(content) if byte == ord("\n")]
    whole = []  # the conversation after each record
    for end in ends:
        file.write_bytes(content[: end + 1])
        whole.append(read(file)[1])
    wrong: dict[str, list[int]] = {}
    for cut in range(len(content) + 1):
        file.write_bytes(content[:cut])
        complete = sum(end <= cut for end in ends)  # a record whose line end alone is missing counts
        try:
            session, conversation = Session.resume(file)
        except SessionError:
            if complete:
                wrong.setdefault("refused", []).append(cut)
            continue
        if not complete or conversation != whole[complete - 1]:
            wrong.setdefault("read wrongly", []).append(cut)
        session.asked("after the crash", "after the crash")
        session.close()
        if session.problem or [turn.typed for turn in read(file)[1].turns][-1] != "after the crash":
            wrong.setdefault("goes on wrongly", []).append(cut)
        if len(records(file)) != complete + 1:
            wrong.setdefault("holds half a record", []).append(cut)
    assert {what: cuts[:8] for what, cuts in wrong.items()} == {}


# -- a crash while an answer comes ------------------------------------------------------------------------------


def crashed(turns: int = 1, partial: str = "so far 🙂") -> Path:
    """A chat whose last answer was still coming when the process was killed."""
    session = Session.new("demo")
    for i in range(turns):
        session.asked(f"question {i}", f"question {i}")
        if i < turns - 1:
            session.answered(answer(f"answer {i}"))
    session.answering(turns, Answer(message(partial, "thought"), "interrupted", stats(40)))
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
    session.asked("next", "next")
    session.close()
    file.with_suffix(".partial").write_bytes(partial)  # as if its removal had not reached the disk
    session, conversation = Session.resume(file)
    session.close()
    assert [turn.answer.text if turn.answer else None for turn in conversation.turns] == ["so far 🙂", None]


def test_what_came_of_a_turn_that_has_its_answer_is_not_taken_over_it() -> None:
    file = crashed(1)
    partial = file.with_suffix(".partial").read_bytes()
    session, _ = Session.resume(file)
    session.rewound(0)
    session.asked("again", "again")
    session.answered(answer("the whole"))
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
    session.asked("next", "next")
    for text in ("one", "one two"):
        session.answering(2, answer(text, "interrupted"))
        assert json.loads(file.with_suffix(".partial").read_text(encoding="utf-8"))["content"] == text
    session.answered(answer("one two three"))
    session.close()
    assert sorted(path.name for path in file.parent.iterdir()) == [file.name]


def test_partial_files_are_utf_8_wherever_they_are_written(tmp_path: Path) -> None:
    program = """
        import sys
        from mlxmtp_tui.conversation import Answer
        from mlxmtp_tui.sessions import Session
        from pathlib import Path
        session = Session.new("demo", Path(sys.argv[1]))
        session.asked("a", "a")
        session.answering(1, Answer({"role": "assistant", "content": "🙂"}, "interrupted"))
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
    session.asked("first", "first")
    session.answered(answer("1"))
    before = session.file.read_bytes()
    with room_for(10, session.file):
        session.asked("second " * 50, "second " * 50)
        assert session.problem is not None
        assert os.strerror(errno.EFBIG) in session.problem
        assert session.file.read_bytes() == before, "no half line stays"
        session.answered(answer("2"))
        assert session.problem
        assert session.file.read_bytes() == before
    session.asked("third", "third")
    assert session.problem is None
    session.answered(answer("3"))
    session.close()
    records(session.file)
    _, conversation = read(session.file)
    assert [turn.typed for turn in conversation.turns] == ["first", "second " * 50, "third"]
    assert [turn.answer.text if turn.answer else None for turn in conversation.turns] == ["1", "2", "3"]


def test_a_disk_that_was_full_to_the_end_leaves_a_whole_file_behind() -> None:
    session = Session.new("demo")
    session.asked("first", "first")
    with room_for(0, session.file):
        session.answered(answer("1"))
        session.close()
    assert len(records(session.file)) == 2


def test_a_disk_that_is_full_from_the_first_write_on(chats: Path) -> None:
    chats.mkdir(parents=True)
    session = Session.new("demo")
    session.file.touch()
    with room_for(0, session.file):
        session.asked("first", "first")
        assert session.problem
    session.answered(answer("1"))
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
            session.asked("next", "next")
            session.close()
        assert session.problem
        assert file.read_bytes() == mended
        assert read(file)[1] == conversation


def test_a_folder_that_cannot_be_made_is_told_and_tried_again(chats: Path) -> None:
    chats.parent.mkdir(parents=True)
    chats.write_text("a file where the folder should be")
    session = Session.new("demo")
    session.asked("first", "first")
    session.answering(1, answer("so", "interrupted"))
    session.answered(answer("1"))
    assert session.problem is not None
    assert "not saved" in session.problem
    chats.unlink()
    session.asked("second", "second")
    assert session.problem is None
    session.close()
    assert [turn.typed for turn in read(session.file)[1].turns] == ["first", "second"]


def test_a_partial_answer_that_was_written_does_not_hide_records_that_were_not() -> None:
    session = Session.new("demo")
    session.asked("first", "first")
    with room_for(0, session.file):
        session.answered(answer("1"))
    assert session.problem
    session.answering(2, answer("x", "interrupted"))  # there is room again, but what is due was not written yet
    assert session.problem or len(records(session.file)) == 3
    session.close()


def test_a_partial_answer_without_room_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session.new("demo")
    session.asked("first", "first")

    def full(*_: Any, **__: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        patch.setattr(Path, "write_bytes", full)
        session.answering(1, answer("so far", "interrupted"))
        assert session.problem is not None
        assert os.strerror(errno.ENOSPC) in session.problem
    session.answering(1, answer("so far", "interrupted"))
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
        session.asked("mine", "mine")
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


# -- lists and names --------------------------------------------------------------------------------------------


def test_a_chat_is_found_by_its_id_its_title_its_path_or_as_the_newest(chats: Path, home: Path) -> None:
    old, new = saved_chat(1, model="old"), saved_chat(2, model="new")
    session, _ = Session.resume(old)
    session.title("About cats")
    session.close()
    os.utime(old, (1_000, 1_000))
    os.utime(new, (2_000, 2_000))
    assert find(None) == new
    assert find(old.stem) == old
    assert find("About cats") == old
    assert find("question 1") == new, "a chat without a title is called by its first line"
    assert find(str(new)) == new
    (home / "mine.jsonl").write_bytes(old.read_bytes())
    assert find("~/mine.jsonl").read_bytes() == old.read_bytes()
    listed = saved()
    assert [(chat.id, chat.title, chat.model, chat.turns) for chat in listed] == [
        (new.stem, "question 1", "new", 2),
        (old.stem, "About cats", "old", 1),
    ]


def test_a_chat_that_is_not_there_is_named_with_what_is(chats: Path) -> None:
    for name in (None, "x"):
        with pytest.raises(SessionError, match=f"no saved chat in {chats}"):
            find(name)
    file = saved_chat(1)
    with pytest.raises(SessionError, match=f"no saved chat is called 'x'; the newest of 1 in .* is {file.stem}"):
        find("x")


@pytest.mark.parametrize("name", ["~nosuchuser", "~nosuchuser/chat", "x" * 5_000, "nul\0"], ids=range(4))
def test_a_name_that_no_file_can_have_is_no_chat(name: str) -> None:
    saved_chat(1)
    with pytest.raises(SessionError, match="no saved chat is called"):
        find(name)


def test_chats_begun_in_the_same_second_have_files_of_their_own() -> None:
    assert len({Session.new("demo").file for _ in range(20)}) == 20
