"""Files that others wrote: regular ones alone are read, as far as a bound, and JSON as deep as a bound."""

import os
from pathlib import Path

import pytest

from mlxmtp.files import MAX_NESTING, open_regular, parse_json, read_json, read_regular, remove_abandoned
from tests.within import within


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    (tmp_path / "to-fifo").symlink_to("fifo")
    (tmp_path / "to-device").symlink_to("/dev/zero")
    for name in ("fifo", "folder", "to-fifo", "to-device"):
        for read in (open_regular, read_regular, read_json):
            with within(5), pytest.raises(OSError, match="not a regular file"):
                read(tmp_path / name)
    (tmp_path / "file").write_bytes(b"text")
    (tmp_path / "to-file").symlink_to("file")
    assert read_regular(tmp_path / "to-file") == b"text"
    with pytest.raises(FileNotFoundError):
        read_regular(tmp_path / "none")


def test_no_more_than_the_bound_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    assert read_regular(tmp_path / "file", 5) == b"12345"
    with pytest.raises(OSError, match="larger than 4 bytes"):
        read_regular(tmp_path / "file", 4)


def test_json_of_any_depth_is_read_or_refused() -> None:
    for open_, close in (("[", "]"), ('{"a":', "}")):
        deepest = open_ * MAX_NESTING + "1" + close * MAX_NESTING
        assert str(parse_json(deepest)).count(open_[0]) == MAX_NESTING
        for depth in (MAX_NESTING + 1, 100_000):
            for closed in (close * depth, ""):
                with pytest.raises(ValueError, match=r"nested|Expecting"):
                    parse_json(open_ * depth + "1" + closed)
    assert parse_json('{"a": [1, {"b": null}], "c": "[[["}') == {"a": [1, {"b": None}], "c": "[[["}
    assert [parse_json(text) for text in ("1", '"a"', "null", "[]", "{}")] == [1, "a", None, [], {}]


def test_a_fifo_among_unfinished_files_blocks_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ".file.0123abcd.partial")
    with within(5):
        remove_abandoned(tmp_path)
