"""ChatPicker on disk: read back as they were, whatever a crash, a full disk or a second process did to them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from mlxmtp_tui.conversation import Answer, Conversation
from mlxmtp_tui.sessions import Session, SessionError, find, folder, model_of, read, saved

from tests.tui.harness import answer, message, saved_chat, stats

EVERYTHING = 'Grüße 👩‍👩‍👧 家族 \t "quoted" \\ back `code`\r\nnew line \0 zero \x1b[31m'
# what str.splitlines takes for the end of a line, and JSON does not escape
LINE_ENDS = "next\x85line\u2028separator\u2029paragraph\x0bvertical\x0cfeed\x1cfile"


def full_chat(root: Path | None = None) -> tuple[Path, Conversation]:
    """A chat with all that a chat can have, and what is expected of it."""
    session = Session.new("owner/name", root)
    expected = Conversation("Be short. 🙂")
    session.write_system(expected.system)
    expected.ask(EVERYTHING, EVERYTHING + "\n\na.txt:\n```txt\nhello\n```")
    session.write_user(EVERYTHING, expected.turns[-1].sent)
    calls = [("weather", {"city": "Zürich", "days": [1, 2]}), ("time", {})]
    replies = [
        Answer(message("It says **hello**. 🙂", "Let me look …\nat it", calls), "stop", stats(), 1.49),
        Answer(message(""), "interrupted"),
        Answer(message("cut"), "length", stats(3, acceptance_by_depth=(), drafted=0)),
    ]
    expected.answer(replies[0])
    session.write_answer(replies[0])
    for typed, reply in (("taken back", replies[1]), ("second", replies[2])):
        session.write_user(typed, typed)
        session.write_answer(reply)
        if typed == "taken back":
            session.write_rewind(1)
    expected.ask("second", "second")
    expected.answer(replies[2])
    session.write_title("Greetings 🎉")
    session.write_model("other/name")
    session.close()
    return session.file, expected


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
    session.write_user(LINE_ENDS, LINE_ENDS)
    session.write_answer(answer(LINE_ENDS))
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
    session.write_user("look at \udcff", "look at \udcff")
    session.write_answer(answer("hm"))
    session.close()
    assert session.problem is None
    assert len(read(session.file)[1].turns) == 1


def test_nothing_is_written_before_the_first_message(chats: Path) -> None:
    session = Session.new("demo")
    session.close()
    assert not chats.exists()
    assert folder() == chats
    session.write_user("a", "a")
    assert session.file.parent == chats


def test_a_chat_goes_on_where_it_was() -> None:
    file, expected = full_chat()
    session, conversation = Session.resume(file)
    assert conversation == expected
    session.write_user("third", "third")
    session.write_answer(answer("3"))
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
        session.write_user("after the crash", "after the crash")
        session.close()
        if session.problem or [turn.typed for turn in read(file)[1].turns][-1] != "after the crash":
            wrong.setdefault("goes on wrongly", []).append(cut)
        if len(records(file)) != complete + 1:
            wrong.setdefault("holds half a record", []).append(cut)
    assert {what: cuts[:8] for what, cuts in wrong.items()} == {}


# -- lists and names --------------------------------------------------------------------------------------------


def test_a_chat_is_found_by_its_id_its_title_its_path_or_as_the_newest(chats: Path, home: Path) -> None:
    old, new = saved_chat(1, model="old"), saved_chat(2, model="new")
    session, _ = Session.resume(old)
    session.write_title("About cats")
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
