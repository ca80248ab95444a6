"""One process at a time makes a folder or a head; what a killed one left is no hindrance."""

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlxmtp import files
from mlxmtp.checkpoints.attached import partial_file
from mlxmtp.errors import CheckpointError
from mlxmtp.files import locked, staged_folder
from tests.comparing import contents
from tests.conftest import REPO
from tests.conversion.faults import ORIGINAL, Attached, Run, assert_told, attached, leftovers
from tests.hub import Hub

BUSY = "another mlxmtp is writing {}; run the command again when it is done"


def test_a_folder_that_another_process_is_making(tmp_path: Path) -> None:
    dest = tmp_path / "dest"
    with staged_folder(dest) as stage:
        (stage / "file").write_text("first")
        with pytest.raises(CheckpointError, match=BUSY.format(dest)), staged_folder(dest):
            pass
    assert contents(dest) == {"file": b"first"}
    with pytest.raises(CheckpointError, match="exists already"), staged_folder(dest):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["dest"]


@pytest.mark.parametrize("first_one", ["is done", "gave up"])
def test_a_folder_that_was_being_made_a_moment_ago(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first_one: str
) -> None:
    """The other process lets go between our opening of its staging folder and the lock."""
    dest = tmp_path / "dest"

    def late(handle: int, how: int) -> None:
        stage = tmp_path / ".dest.partial"
        stage.rename(dest) if first_one == "is done" else stage.rmdir()
        flock(handle, how)

    flock = fcntl.flock
    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(CheckpointError, match=BUSY.format(dest)), staged_folder(dest):
        pass
    assert [path.name for path in tmp_path.iterdir()] == (["dest"] if first_one == "is done" else [])


def test_what_a_killed_process_left_is_cleared(tmp_path: Path) -> None:
    left = tmp_path / ".dest.partial"
    (left / "more").mkdir(parents=True)
    (left / "more" / "file").write_text("old")
    (left / "link").symlink_to(tmp_path)
    (tmp_path / "mine").write_text("mine")
    with staged_folder(tmp_path / "dest") as stage:
        assert not list(stage.iterdir())
        (stage / "file").write_text("new")
    assert contents(tmp_path) == {"dest/file": b"new", "mine": b"mine"}


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(files.fcntl, "flock", refuse)
    with staged_folder(tmp_path / "dest") as stage:
        (stage / "file").write_text("new")
    assert contents(tmp_path) == {"dest/file": b"new"}


def test_a_trunk_that_another_process_attaches_to(run: Run, trunk: Path, original: Path, whole: Attached) -> None:
    before = contents(trunk)
    command = ("attach", trunk, "--from", original, "--no-check")
    with locked(trunk, trunk):
        assert_told(run(*command), BUSY.format(trunk / "mtp.safetensors"))
    assert contents(trunk) == before
    assert run(*command)[0] == 0
    assert attached(trunk) == whole


def test_a_head_that_another_process_is_fetching(run: Run, trunk: Path, models: Hub, whole: Attached) -> None:
    file = partial_file(ORIGINAL, models.repos[ORIGINAL].main)
    file.parent.mkdir(parents=True)
    file.write_bytes(b"theirs")
    before = contents(trunk)
    command = ("attach", trunk, "--from", ORIGINAL, "--no-check")
    with locked(file, file):
        assert_told(run(*command), BUSY.format(file))
        assert file.read_bytes() == b"theirs"
    assert contents(trunk) == before
    assert run(*command)[0] == 0
    assert attached(trunk) == whole


@pytest.mark.exhaustive
def test_two_conversions_to_one_folder(original: Path, tmp_path: Path, run: Run) -> None:
    command = [sys.executable, "-m", "mlxmtp", "convert", str(original), str(tmp_path / "dest")]
    both = [subprocess.Popen(command, cwd=REPO, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    told = sorted((process.communicate()[1], process.returncode) for process in both)
    assert sorted(code for _, code in told) == [0, 2], told
    assert run("convert", original, tmp_path / "alone")[0] == 0
    assert contents(tmp_path / "dest") == contents(tmp_path / "alone")
    assert not leftovers(tmp_path)
