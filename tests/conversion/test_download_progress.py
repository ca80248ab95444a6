"""What a download tells of its progress: bytes, up to the last one, and nothing on the terminal."""

import threading
from pathlib import Path

import pytest

from mlxmtp.checkpoints.hub import download
from mlxmtp.conversion.pull import plan_pull, pull
from mlxmtp.errors import CheckpointError
from tests.comparing import contents
from tests.conversion.faults import HEAD, HEAD_SHARD, ORIGINAL
from tests.hub import Fault, Hub

Told = list[tuple[int, int]]


def pulled(told: Told) -> Path:
    """Download what is missing; what is told meanwhile is added to `told`."""
    return pull(plan_pull(ORIGINAL), lambda done, total: told.append((done, total)))


def size(folder: Path) -> int:
    return sum(map(len, contents(folder).values()))


def assert_to_the_end(told: Told, total: int) -> None:
    """Numbers come from several threads: the last is the largest, and all are of the same whole."""
    assert {of for _, of in told} == {total}
    assert all(0 <= done <= total for done, _ in told)
    assert told[-1] == (total, total)


def test_every_byte_is_counted(models: Hub, original: Path) -> None:
    told: Told = []
    assert contents(pulled(told)) == contents(original)
    assert_to_the_end(told, size(original))
    assert len({done for done, _ in told}) > 3, "not the end alone"


def test_nothing_is_shown_beside_it(models: Hub, capfd: pytest.CaptureFixture[str]) -> None:
    pulled([])
    assert capfd.readouterr() == ("", "")


def test_nobody_asks_and_the_client_shows_it(models: Hub, capfd: pytest.CaptureFixture[str]) -> None:
    pull(plan_pull(ORIGINAL))
    assert "100%" in capfd.readouterr().err


def test_only_what_is_missing_counts(models: Hub, original: Path) -> None:
    snapshot = download(ORIGINAL)
    blob = (snapshot / HEAD_SHARD).resolve()
    blob.unlink()
    (snapshot / HEAD_SHARD).unlink()
    told: Told = []
    pulled(told)
    assert_to_the_end(told, (original / HEAD_SHARD).stat().st_size)
    assert contents(snapshot) == contents(original)


def test_where_nothing_is_missing_nothing_is_counted(models: Hub) -> None:
    pulled([])
    told: Told = []
    pulled(told)
    assert {done for done, _ in told} <= {0}


@pytest.mark.usefixtures("waits")
def test_what_an_earlier_download_left_is_counted(models: Hub, original: Path) -> None:
    models.faults.append(Fault(HEAD, "cut", 99))
    with pytest.raises(CheckpointError):
        pulled([])
    models.faults.clear()
    told: Told = []
    assert contents(pulled(told)) == contents(original)
    assert_to_the_end(told, (original / HEAD_SHARD).stat().st_size)


@pytest.mark.usefixtures("waits")
def test_a_broken_connection_counts_no_byte_twice(models: Hub, original: Path) -> None:
    models.faults.append(Fault(HEAD, "cut"))
    told: Told = []
    assert contents(pulled(told)) == contents(original)
    assert_to_the_end(told, size(original))


def test_a_damaged_file_counts_too(models: Hub, original: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """It is fetched again, and whoever shows progress shows that of it."""
    file = (download(ORIGINAL) / HEAD_SHARD).resolve()
    file.write_bytes(file.read_bytes()[:-8])
    capfd.readouterr()
    told: Told = []
    assert contents(pulled(told)) == contents(original)
    assert_to_the_end(told, (original / HEAD_SHARD).stat().st_size)
    assert capfd.readouterr().err == ""


def test_bytes_are_counted_from_any_thread(models: Hub, original: Path) -> None:
    """The one who is told must be ready for it; what he is told is the sum of all files."""
    told: list[tuple[int, int]] = []
    download(ORIGINAL, on_bytes=lambda done: told.append((done, threading.get_ident())))
    assert max(done for done, _ in told) == size(original)
