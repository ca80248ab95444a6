"""Files among the saved chats that no mlxmtp wrote, and who can read ours."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from mlxmtp_tui import history
from mlxmtp_tui.conversation import Answer
from mlxmtp_tui.files import MAX_BYTES, MentionError, expand_mentions
from mlxmtp_tui.sessions import Session, SessionError, find, read, saved

from tests.tui.harness import answer, message, saved_chat, stats
from tests.within import within

DEEP = "[" * 100_000
HEAD = {"type": "chat", "version": 1, "model": "m", "created": "x"}


def test_a_chat_is_found_among_what_is_none(tmp_path: Path) -> None:
    file = saved_chat(1, tmp_path)
    os.mkfifo(tmp_path / "fifo.jsonl")
    (tmp_path / "zero.jsonl").symlink_to("/dev/zero")
    (tmp_path / "deep.jsonl").write_text(json.dumps(HEAD) + "\n" + DEEP + "\n")
    (tmp_path / "cut.jsonl").write_text(json.dumps(HEAD) + "\n" + DEEP)
    (tmp_path / "folder.jsonl").mkdir()
    with within(20):
        assert {chat.file.name for chat in saved(tmp_path)} == {file.name, "cut.jsonl"}
        assert find(file.stem, tmp_path) == file
        for name in ("fifo", "zero", "deep", "folder"):
            for look in (read, Session.resume):
                with pytest.raises(SessionError, match=rf"{name}\.jsonl"):
                    look(tmp_path / f"{name}.jsonl")


def test_records_of_wrong_types_are_no_chat(tmp_path: Path) -> None:
    user = {"role": "user", "content": "a"}
    reply: dict[str, Any] = {"role": "assistant", "content": "b", "finish": "stop"}
    numbers = stats(4).to_dict()
    sound = [HEAD, user, reply | {"stats": numbers, "speedup": 1.5, "tool_calls": None}]
    wrong: list[list[dict[str, Any]]] = [
        [HEAD | {"model": {}}],
        [HEAD | {"created": 5}],
        [HEAD, {"type": "title", "text": ["a"]}],
        [HEAD, {"type": "model", "name": None}],
        [HEAD, {"role": "system", "content": 5}],
        [HEAD, user | {"content": {"a": 1}}],
        [HEAD, user | {"sent": 7}],
        [HEAD, user, reply | {"content": ["b"]}],
        [HEAD, user, reply | {"reasoning_content": 5}],
        [HEAD, user, reply | {"finish": None}],
        [HEAD, user, reply | {"speedup": "fast"}],
        [HEAD, user, reply | {"tool_calls": [{"function": {"name": 5}}]}],
        [HEAD, user, reply | {"tool_calls": 5}],
        [HEAD, user, reply | {"stats": numbers | {"tokens": "many"}}],
        [HEAD, user, reply | {"stats": numbers | {"tokens": None}}],
        [HEAD, user, reply | {"stats": numbers | {"decode_tps": float("inf")}}],
        [HEAD, user, reply | {"stats": numbers | {"acceptance_by_depth": ["x"]}}],
        [HEAD, user, reply | {"stats": numbers | {"policy": 5}}],
        [HEAD, user, reply | {"stats": [1]}],
    ]
    file = tmp_path / "some.jsonl"
    for records in (sound, *wrong):
        file.write_text("".join(json.dumps(record) + "\n" for record in records))
        if records is sound:
            assert read(file)[1].turns[0].answer == Answer(message("b"), "stop", stats(4), 1.5)
            continue
        with pytest.raises(SessionError, match="incomplete"):
            pytest.fail(f"{records[-1]} is taken as {read(file)[1]}")


def test_a_partial_answer_that_is_none_costs_only_itself(tmp_path: Path) -> None:
    file = saved_chat(1, tmp_path)
    session, _ = Session.resume(file)
    session.write_user("more", "more")
    session.close()
    partial = file.with_suffix(".partial")
    for make in (os.mkfifo, lambda path: path.write_text(DEEP), lambda path: path.symlink_to("/dev/zero")):
        make(partial)
        with within(20):
            session, conversation = Session.resume(file)
        session.close()
        assert conversation.unanswered
        partial.unlink()


def test_a_history_that_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(history, "file", lambda: tmp_path / "history.jsonl")
    for make in (os.mkfifo, Path.mkdir):
        make(history.file())
        with within(20):
            history.add("a")
            assert history.load() == []
        history.file().rmdir() if history.file().is_dir() else history.file().unlink()
    history.file().write_text('"one"\n' + DEEP + '\n"two"\n')
    assert history.load() == ["one", "two"]
    history.file().write_bytes(b"\n" * (history.MAX_BYTES + 9) + b'"three"\n')
    assert history.load() == ["three"]


def test_prompts_and_answers_are_their_owners_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        monkeypatch.setattr(history, "file", lambda: tmp_path / "history.jsonl")
        history.file().write_text('"of an earlier version"\n')
        history.add("secret")
        session = Session.new("demo", tmp_path)
        session.write_user("secret", "secret")
        session.write_partial(1, answer("secret"))
        session.close()
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir() if file.is_file()}
        assert set(modes) == {"history.jsonl", session.file.name, session.file.with_suffix(".partial").name}
        assert set(modes.values()) == {0o600}, modes
    finally:
        os.umask(before)


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="no file here that has no size")
def test_a_mentioned_file_without_a_size_is_read_within_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlxmtp_tui.files.MAX_BYTES", 10)
    with pytest.raises(MentionError, match="larger than 10 bytes"):
        expand_mentions("@/proc/self/status")
    assert MAX_BYTES > 10
