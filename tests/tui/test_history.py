"""What was typed in earlier chats: kept for the up key, and never in the way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mlxmtp_tui import history


def test_prompts_come_back_in_order_whatever_is_in_them() -> None:
    prompts = [
        "one",
        "two\nlines",
        "日本 🎈",
        "next\x85line\u2028separator\x0cfeed",
        'quo"te \\ \x1b[31m \0',
        "/temp 0.5",
    ]
    assert history.load() == []
    for prompt in prompts:
        history.add(prompt)
    assert history.load() == prompts
    lines = history.file().read_bytes().split(b"\n")
    assert [json.loads(line) for line in lines[:-1]] == prompts, "a line each, for every other program too"


def test_only_the_newest_are_kept_and_no_pasted_book() -> None:
    for i in range(history.MAX_PROMPTS + 20):
        history.add(f"prompt {i}")
    history.add("x" * (history.MAX_CHARACTERS + 1))
    found = history.load()
    assert len(found) == history.MAX_PROMPTS
    assert found[-1] == f"prompt {history.MAX_PROMPTS + 19}"


@pytest.mark.parametrize("broken", [b"half a li", b"{\n", b"5\n", b"[1]\n", b"\xff\xfe\n", b"\n\n"])
def test_a_broken_line_costs_itself_only(broken: bytes) -> None:
    history.add("before")
    with history.file().open("ab") as out:
        out.write(broken)
        if not broken.endswith(b"\n"):
            out.write(b"\n")  # as the next one of a newer version would
    history.add("after")
    assert history.load() == ["before", "after"]


def test_half_a_surrogate_pair_does_no_harm() -> None:
    history.add("look at \udcff")
    history.add("after")
    assert history.load()[-1] == "after"


def test_where_nothing_can_be_written_there_is_no_history(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file where the folder should be")
    history.add("one")
    assert history.load() == []
