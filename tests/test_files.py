"""Files are replaced whole or not at all, and what a killed writer left is removed."""

import os
import stat
from pathlib import Path

import pytest

from mlxmtp.files import remove_abandoned, staged_file, unfinished_file, write_whole


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_when_the_block_ends(tmp_path: Path) -> None:
    dest = tmp_path / "file"
    dest.write_text("old")
    with staged_file(dest) as stage:
        stage.write_text("new")
        assert dest.read_text() == "old"
    assert (dest.read_text(), names(tmp_path)) == ("new", ["file"])


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_error_leaves_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    dest = tmp_path / "file"
    dest.write_text("old")

    def write() -> None:
        with staged_file(dest) as stage:
            stage.write_text("new")
            raise error

    with pytest.raises(error):
        write()
    assert (dest.read_text(), names(tmp_path)) == ("old", ["file"])


def test_the_mode_is_that_of_the_new_file(tmp_path: Path) -> None:
    for mode in (0o600, 0o644):
        with staged_file(tmp_path / "file", mode) as stage:
            stage.write_text("secret")
        assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode & ~_umask()


def test_what_a_killed_writer_left_is_removed_and_what_is_being_written_is_not(tmp_path: Path) -> None:
    (tmp_path / ".a[1].json.0123abcd.partial").write_text("half")
    (tmp_path / ".b.0123abcd.partial").write_text("another file's half")
    with unfinished_file(tmp_path, "a[1].json") as theirs:
        write_whole(tmp_path / "a[1].json", "whole")
        assert names(tmp_path) == sorted([theirs.name, ".b.0123abcd.partial", "a[1].json"])
        remove_abandoned(tmp_path)
        assert names(tmp_path) == sorted([theirs.name, "a[1].json"])
    assert names(tmp_path) == ["a[1].json"]


def test_two_writers_of_one_file_both_finish(tmp_path: Path) -> None:
    dest = tmp_path / "file"
    with staged_file(dest) as one:
        one.write_text("one")
        write_whole(dest, "two")
        assert dest.read_text() == "two"
    assert (dest.read_text(), names(tmp_path)) == ("one", ["file"])


def test_a_file_that_was_taken_for_abandoned_before_its_lock_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    open_file = os.open

    def late(path: str | Path, flags: int, mode: int = 0o777) -> int:
        handle = open_file(path, flags, mode)
        opened.append(Path(path).name)
        if len(opened) == 1:
            remove_abandoned(tmp_path)  # another process, between creation and lock
        return handle

    monkeypatch.setattr(os, "open", late)
    with unfinished_file(tmp_path, "file") as stage:
        assert stage.exists()
    assert len(set(opened)) == 2


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
