"""Measurements on disk: what a kill leaves, and which files are refused."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest

from mlxmtp import OptionError
from mlxmtp.bench.records import FILE, RecordError, Records, parse

HEAD: dict[str, Any] = {"identity": "abc", "model": {"name": "m"}, "settings": {"tokens": 8, "repeats": 1}}
ROWS = [{"key": f"unit/{i}", "text": "ä\u2028\n"} for i in range(3)]


def written(folder: Path, rows: list[dict[str, Any]]) -> bytes:
    with Records(folder, HEAD) as records:
        for row in rows:
            records.append(row)
    return (folder / FILE).read_bytes()


def test_what_is_written_is_there_again(tmp_path: Path):
    written(tmp_path / "new" / "folder", ROWS)
    with Records(tmp_path / "new" / "folder", HEAD) as records:
        assert records.all == ROWS
        assert records.done == {"unit/0", "unit/1", "unit/2"}


def test_a_kill_at_any_byte_costs_one_record_at_most(tmp_path: Path):
    """The rest is measured again, and no record is there twice."""
    whole = written(tmp_path, ROWS)
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for size in range(len(whole) + 1):
        (tmp_path / FILE).write_bytes(whole[:size])
        kept = max(sum(end <= size for end in ends) - 1, 0)
        with Records(tmp_path, HEAD) as records:
            assert records.all == ROWS[:kept]
            for row in ROWS:
                if row["key"] not in records.done:
                    records.append(row)
        assert (tmp_path / FILE).read_bytes() == whole


@pytest.mark.parametrize("rubbish", [b"\x00\x00\x00", b'{"key": "x"', b"[]\n", b"{}x\n", b"\xff\n"])
def test_a_damaged_last_line_is_cut_off(tmp_path: Path, rubbish: bytes):
    whole = written(tmp_path, ROWS)
    (tmp_path / FILE).write_bytes(whole + rubbish)
    with Records(tmp_path, HEAD) as records:
        assert records.all == ROWS
    assert written(tmp_path, []) == whole


def test_damage_elsewhere_is_refused_and_left_alone(tmp_path: Path):
    lines = written(tmp_path, ROWS).splitlines(keepends=True)
    damaged = b"".join([*lines[:2], b'{"key"\n', *lines[2:]])
    (tmp_path / FILE).write_bytes(damaged)
    with pytest.raises(RecordError, match="line 3: damaged; give another --out"):
        Records(tmp_path, HEAD)
    assert (tmp_path / FILE).read_bytes() == damaged


def test_another_benchmark_is_refused_and_said_how_it_differs(tmp_path: Path):
    written(tmp_path, ROWS)
    other = HEAD | {"identity": "def", "settings": {"tokens": 16, "repeats": 1}}
    with pytest.raises(RecordError, match=r"of another benchmark \(settings tokens: 8 there, 16 now\); give another"):
        Records(tmp_path, other)
    with pytest.raises(RecordError, match="other prompts"):
        Records(tmp_path, HEAD | {"identity": "def"})


def test_more_repeats_go_on(tmp_path: Path):
    written(tmp_path, ROWS)
    with Records(tmp_path, HEAD | {"settings": {"tokens": 8, "repeats": 5}}) as records:
        assert records.head["settings"]["repeats"] == 5
        assert records.all == ROWS


def test_another_file_is_no_benchmark(tmp_path: Path):
    (tmp_path / FILE).write_text('{"some": "thing"}\n')
    with pytest.raises(RecordError, match="not a benchmark's measurements"):
        Records(tmp_path, HEAD)
    (tmp_path / FILE).write_text(json.dumps(HEAD) + '\n{"some": "thing"}\n')
    with pytest.raises(RecordError, match="not a benchmark's measurements"):
        Records(tmp_path, HEAD)


def test_two_at_once_are_refused(tmp_path: Path):
    with Records(tmp_path, HEAD), pytest.raises(RecordError, match="another benchmark writes it"):
        Records(tmp_path, HEAD)
    Records(tmp_path, HEAD).__exit__(None, None, None)


def test_a_folder_that_cannot_be(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(OptionError, match=r"file: .*expected a folder to write to"):
        Records(tmp_path / "file", HEAD)


def test_a_full_disk_keeps_what_was_measured(tmp_path: Path):
    """Half a line fits; the same command goes on after the last whole line."""
    records = Records(tmp_path, HEAD)
    records.append(ROWS[0])
    sound = (tmp_path / FILE).read_bytes()
    file = records._file

    class Full:
        def write(self, line: bytes) -> int:
            if len(line) > 20:
                return file.write(line[: len(line) - 20])
            raise OSError(errno.ENOSPC, "No space left on device")

        def __getattr__(self, name: str) -> Any:
            return getattr(file, name)

    records._file = Full()  # type: ignore[assignment]
    with pytest.raises(OSError, match="No space left on device; what was measured is kept, make room") as caught:
        records.append(ROWS[1])
    assert caught.value.filename == str(tmp_path / FILE)
    assert records.done == {"unit/0"}
    records._file.close()
    assert len((tmp_path / FILE).read_bytes()) > len(sound)
    assert written(tmp_path, []) == sound


def test_parse_counts_the_bytes_that_hold_rows():
    assert parse(b"", "x") == ([], 0)
    assert parse(b'{"a": 1}\n{"b"', "x") == ([{"a": 1}], 9)
