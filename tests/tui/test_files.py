"""Files named in a prompt: which of its words are files, what is put into it, and what is offered while typing."""

import os
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from mlxmtp_tui.files import MAX_BYTES, MAX_COMPLETIONS, MentionError, completions, expand_mentions, missing_files


@pytest.fixture
def notes(home: Path) -> Path:
    """A folder with what people name."""
    (home / "notes.txt").write_text("first\nsecond\n")
    (home / "my notes.md").write_text("# Mine\n")
    (home / "src").mkdir()
    (home / "src" / "main.py").write_text("print('hi')\n")
    return home


# -- what is put into a prompt ----------------------------------------------------------------------------------


def test_a_file_stands_behind_the_prompt_in_a_fence_with_its_language(notes: Path) -> None:
    assert expand_mentions("What is in @src/main.py?") == (
        "What is in @src/main.py?\n\nsrc/main.py:\n```py\nprint('hi')\n```"
    )
    assert expand_mentions("@notes.txt") == "@notes.txt\n\nnotes.txt:\n```txt\nfirst\nsecond\n```"


def test_blanks_need_quotes_and_several_files_come_in_order_each_once(notes: Path) -> None:
    prompt = 'Compare @"my notes.md" with @notes.txt, then @"my notes.md" again'
    assert expand_mentions(prompt) == (
        f"{prompt}\n\nmy notes.md:\n```md\n# Mine\n```\n\nnotes.txt:\n```txt\nfirst\nsecond\n```"
    )


@pytest.mark.parametrize("before", ["", "(", "see:", '"', "\n", "["])
@pytest.mark.parametrize("after", ["", ".", ",", "?!", ")", "):", "...", "]", "\nand"])
def test_punctuation_around_a_name_is_none_of_it(notes: Path, before: str, after: str) -> None:
    prompt = f"{before}@notes.txt{after}"
    assert expand_mentions(prompt) == f"{prompt}\n\nnotes.txt:\n```txt\nfirst\nsecond\n```"


def test_a_name_that_ends_in_punctuation_is_taken_as_it_is(home: Path) -> None:
    (home / "what?").write_text("the very file")
    (home / "what").write_text("another")
    assert "the very file" in expand_mentions("@what?")
    assert "another" not in expand_mentions("@what?")


@pytest.mark.parametrize(
    "prompt",
    [
        "write to notes.txt@example.org",
        "a.b@notes.txt",
        "@someone said hi",
        "@@notes.txt",
        "an @ alone, and @",
        '@"no such file.txt"',
        '@"',
        "@src",
        "@src/",
        "@/",
        "@.",
        "@no/such/file",
        "@~nosuchuser/file",
        "@~nosuchuser",
        "@" + "x" * 5_000,
        "@nul\0byte",
        "@property\ndef f(): ...",
    ],
    ids=range(17),
)
def test_addresses_handles_folders_and_what_is_not_there_are_left_alone(notes: Path, prompt: str) -> None:
    assert expand_mentions(prompt) == prompt


def test_home_and_absolute_paths(notes: Path) -> None:
    assert "first" in expand_mentions("@~/notes.txt")
    assert "first" in expand_mentions(f"@{notes}/notes.txt")
    assert expand_mentions("@~/notes.txt").splitlines()[2] == "~/notes.txt:"


def test_what_is_no_text_is_refused_by_name(home: Path) -> None:
    for name, content in (("latin1.txt", "Grüße".encode("latin-1")), ("zero.bin", b"a\0b")):
        (home / name).write_bytes(content)
        with pytest.raises(MentionError, match=rf"{name}: not a text file"):
            expand_mentions(f"see @{name}")


def test_a_file_that_is_too_large_is_refused_with_both_sizes(home: Path) -> None:
    (home / "large.txt").write_bytes(b"x" * (MAX_BYTES + 1))
    with pytest.raises(MentionError, match=r"large\.txt: 2\.0 MB; a file in a prompt can have 2\.0 MB at most"):
        expand_mentions("@large.txt")
    (home / "large.txt").write_bytes(b"x" * MAX_BYTES)
    assert len(expand_mentions("@large.txt")) > MAX_BYTES


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="no file here that everybody sees and nobody reads")
def test_a_file_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(MentionError, match=r"mem: cannot be read \(Input/output error\)"):
        expand_mentions("@/proc/self/mem")


def test_a_file_without_rights_is_refused(notes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path, _: int) -> bytes:  # rights do not bind the superuser, who may run the tests
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("mlxmtp_tui.files.read_regular", refused)
    with pytest.raises(MentionError, match=r"notes\.txt: cannot be read \(Permission denied\)"):
        expand_mentions("@notes.txt")


@pytest.mark.parametrize(
    "content", ["", "\n\n", "```\ncode\n```\n", "````md\n```\nx\n```\n````", "a ``` b", "no end", "~~~\nx\n~~~", "é\n"]
)
def test_whatever_a_file_holds_its_fence_holds_it(home: Path, content: str) -> None:
    (home / "a.md").write_text(content)
    tokens = MarkdownIt("commonmark").parse(expand_mentions("@a.md").split("a.md:\n", 1)[1])
    assert [token.type for token in tokens] == ["fence"]
    assert tokens[0].content.rstrip("\n") == content.rstrip("\n")
    assert tokens[0].info == "md"


# -- what is offered while typing -------------------------------------------------------------------------------


def test_folders_come_first_with_a_slash_and_hidden_files_only_when_asked_for(notes: Path) -> None:
    (notes / "Alpha.txt").touch()
    (notes / ".env").touch()
    (notes / ".git").mkdir()
    assert completions("@") == ["@src/", "@Alpha.txt", '@"my notes.md"', "@notes.txt"]
    assert completions("@a") == ["@Alpha.txt"], "case does not matter"
    assert completions("@.") == ["@.git/", "@.env"]
    assert completions("@src/") == ["@src/main.py"]
    assert completions("@src/m") == ["@src/main.py"]
    assert completions("@./src/m") == ["@./src/main.py"]
    assert completions("@nothing") == []
    assert completions("@no/such/") == []
    assert completions("@notes.txt/") == []


def test_what_is_completed_is_what_is_found(notes: Path) -> None:
    for prompt in (word for start in ("@n", "@my", "@src/", '@"my', '@"') for word in completions(start)):
        if not prompt.endswith("/"):
            assert expand_mentions(prompt) != prompt, prompt


def test_blanks_are_quoted_and_a_quote_that_is_open_goes_on(notes: Path) -> None:
    assert completions("@my") == ['@"my notes.md"']
    assert completions('@"my no') == ['@"my notes.md"']
    (notes / "two\ttabs").touch()
    assert completions("@two") == ['@"two\ttabs"'], "a mention ends at any blank"


def test_a_folder_with_blanks_stays_open_so_that_the_way_goes_on_inside(notes: Path) -> None:
    (notes / "my files").mkdir()
    (notes / "my files" / "a b.txt").write_text("found")
    (offered,) = completions("@my f")
    assert offered == '@"my files/'
    (offered,) = completions(offered)
    assert "found" in expand_mentions(offered)


def test_home_and_absolute_paths_are_completed_as_they_were_typed(notes: Path) -> None:
    assert completions("@~/n") == ["@~/notes.txt"]
    assert completions(f"@{notes}/s") == [f"@{notes}/src/"]
    assert "@/tmp/" in completions("@/tm")
    assert "@/tmp/" in completions("@/")
    assert completions("@~nosuchuser/") == []


def test_names_that_are_no_utf_8_are_not_offered(notes: Path) -> None:
    """No terminal can show them, no chat can save them."""
    try:
        (notes / os.fsdecode(b"bad\xff.txt")).touch()
    except OSError:
        pytest.skip("this file system takes no such name")
    for name in completions("@bad"):
        name.encode()


def test_a_large_folder_is_offered_in_part(home: Path) -> None:
    for i in range(MAX_COMPLETIONS + 10):
        (home / f"file{i:03}").touch()
    assert len(completions("@file")) == MAX_COMPLETIONS
    assert completions("@file05") == [f"@file05{i}" for i in range(10)]


def test_mentions_of_which_there_is_no_file(notes: Path) -> None:
    assert missing_files("see @notes.txt, @nosuch.py. and @no/such or @property, a@b.c and @nosuch.py") == [
        "@nosuch.py",
        "@no/such",
    ]
