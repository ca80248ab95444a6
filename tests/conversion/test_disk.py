"""Disks that are full, and processes that end, at any change they make to files."""

import errno
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from mlxmtp import GenerationOptions, load
from mlxmtp.checkpoints import HEAD_FACTS, SIDECAR
from tests.comparing import contents
from tests.conversion.changes import Changes, Killed
from tests.conversion.faults import (
    ORIGINAL,
    STRIPPED,
    Attached,
    Run,
    assert_told,
    attached,
    kept,
    leftovers,
    small_disk,
    small_files,
)
from tests.grids import cases, grid
from tests.hub import Hub

PLACES = ("folder", "out", "cached", "convert")


@dataclass
class Work:
    """A command, what it leaves alone, and what it makes: `attached` of the one, or all files of a conversion."""

    command: tuple[object, ...]
    dest: Path
    home: Path
    data: Path
    trunk: Path
    expected: object
    ran: tuple[int, str] = (-1, "")

    @property
    def made(self) -> object:
        """Nothing, or what there is, whole or not."""
        if self.command[0] == "convert":
            return contents(self.dest) if self.dest.exists() else None
        return attached(self.dest) if (self.dest / SIDECAR).exists() else None

    @property
    def untouched(self) -> object:
        """The trunk; staged files beside it, and facts in its config without a side-car, mean nothing."""
        files = {name: data for name, data in contents(self.trunk).items() if not name.endswith(".partial")}
        files.pop(SIDECAR, None)
        config = json.loads(files.pop("config.json"))
        config.pop(HEAD_FACTS, None)
        return files, config

    @property
    def left(self) -> list[Path]:
        return leftovers(self.home, self.data)


@pytest.fixture
def works(
    models: Hub,
    stripped: Path,
    original: Path,
    whole: Attached,
    converted: dict[str, bytes],
    data: Path,
    tmp_path: Path,
) -> Iterator[Callable[[str], Work]]:
    """Each call begins anew; in the end, the Hub cache must be as it was."""
    cache = contents(tmp_path / "hf")

    def begin(place: str) -> Work:
        work = tmp_path / "work"
        for folder in (work, data):
            shutil.rmtree(folder, ignore_errors=True)
        trunk, out = Path(shutil.copytree(stripped, work / "trunk")), work / "new" / "out"
        options: dict[str, tuple[tuple[object, ...], Path]] = {
            "folder": (("attach", trunk, "--from", ORIGINAL, "--no-check"), trunk),
            "out": (("attach", trunk, "--from", original, "--no-check", "--out", out), out),
            "cached": (("attach", STRIPPED, "--from", ORIGINAL, "--no-check"), kept(models)),
            "convert": (("convert", original, out), out),
        }
        command, dest = options[place]
        return Work(command, dest, work, data, trunk, converted if place == "convert" else whole)

    yield begin
    assert contents(tmp_path / "hf") == cache


def each_change(works: Callable[[str], Work], run: Run, place: str, how: type[BaseException]) -> Iterator[Work]:
    """The command with its first change gone wrong, then with its second, and so on; how it ended is in `ran`.

    At last nothing goes wrong, and all is as before but for what the command makes.
    """
    for at in range(1000):
        work = works(place)
        before = work.untouched
        with Changes(work.home, work.data, at=at, how=how) as changes, suppress(Killed):
            work.ran = run(*work.command)
        if not changes.reached:
            assert at > 3
            return
        yield work
        assert work.untouched == before
        if work.made is None:
            assert run(*work.command)[0] == 0
            assert not work.left
        assert work.made == work.expected
        assert work.untouched == before


@pytest.mark.parametrize("place", cases(PLACES, default=("convert",)))
def test_no_space_at_any_change(works: Callable[[str], Work], run: Run, place: str) -> None:
    for work in each_change(works, run, place, OSError):
        if work.ran[0] == 0:
            assert work.made == work.expected  # where links fail, by copies
        else:
            assert_told(work.ran, "No space left on device|the disk is full", code=1)
            assert work.made is None
        assert not work.left


@pytest.mark.parametrize("place", cases(PLACES, default=("out",)))
def test_an_interrupt_at_any_change(works: Callable[[str], Work], run: Run, place: str) -> None:
    for work in each_change(works, run, place, KeyboardInterrupt):
        assert work.ran[0] == 130
        assert "mlxmtp:" not in work.ran[1]
        assert work.made in (None, work.expected)
        assert not work.left


@pytest.mark.parametrize("place", cases(PLACES, default=("folder",)))
def test_the_end_of_the_process_at_any_change(works: Callable[[str], Work], run: Run, place: str) -> None:
    for work in each_change(works, run, place, Killed):
        assert work.made in (None, work.expected)
        if place == "folder" and work.made is None:
            assert load(work.trunk).generate([5, 9, 3], GenerationOptions(max_tokens=3)).tokens


@pytest.mark.parametrize("place", PLACES)
def test_too_little_space_is_seen_before_anything_is_written(
    works: Callable[[str], Work], run: Run, place: str
) -> None:
    work = works(place)
    before = contents(work.trunk)
    with small_disk(50_000):
        assert_told(run(*work.command), r"[\d.]+ .B to write, but /.* has 50.0 kB free; make room first")
    assert work.made is None
    assert contents(work.trunk) == before
    assert not work.left
    assert run(*work.command)[0] == 0
    assert work.made == work.expected


@pytest.mark.parametrize(
    ("place", "nbytes"),
    grid(PLACES, [100, 50_000], default=lambda place, nbytes: nbytes == 50_000 or place == "folder"),
)
def test_a_write_that_the_kernel_refuses(
    works: Callable[[str], Work], run: Run, place: str, nbytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its limit is told as a full disk, since no disk can be filled here."""
    work = works(place)
    before = contents(work.trunk)
    with monkeypatch.context() as patched, small_files(nbytes):
        patched.setattr(errno, "ENOSPC", errno.EFBIG)
        ran = run(*work.command)
    assert_told(ran, "the disk is full: no room for /.*; make room and run the command again", code=1)
    assert work.made is None
    assert contents(work.trunk) == before
    assert not work.left
    assert run(*work.command)[0] == 0
    assert work.made == work.expected


@pytest.mark.parametrize("place", ["out", "convert"])
@pytest.mark.parametrize("there", ["file", "folder", "link to nowhere"])
def test_what_is_there_is_left_alone(works: Callable[[str], Work], run: Run, place: str, there: str) -> None:
    work = works(place)
    work.dest.parent.mkdir()
    if there == "file":
        work.dest.write_text("mine")
    elif there == "folder":
        work.dest.mkdir()
    else:
        work.dest.symlink_to("nowhere")
    with Changes(work.dest.parent, work.data, at=1000, how=OSError) as changes:
        assert_told(run(*work.command), f"{work.dest} exists already; remove it, or choose another name")
    assert not changes.seen
    if work.dest.is_dir():
        work.dest.rmdir()
    else:
        work.dest.unlink()
    assert run(*work.command)[0] == 0
    assert work.made == work.expected


@pytest.mark.parametrize("place", ["folder", "cached"])
def test_a_head_that_is_there_can_be_removed_as_is_advised(works: Callable[[str], Work], run: Run, place: str) -> None:
    work = works(place)
    assert run(*work.command)[0] == 0
    assert_told(run(*work.command), f"has a head already.*{work.dest / SIDECAR}; remove")
    (work.dest / SIDECAR).unlink()
    assert run(*work.command)[0] == 0
    assert work.made == work.expected
