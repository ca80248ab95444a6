"""Conversations on a disk whose files are damaged or foreign, or that has no room."""

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mlxmtp import Engine, load
from mlxmtp.decoding.sequence import Sequence
from mlxmtp.engine.prefix_cache import PrefixCache
from tests.conversion.changes import Changes
from tests.conversion.faults import small_disk, small_files
from tests.engine.disk import Disk, answer, flip
from tests.engine.kinds import PLENTY, TRAINED, words

# -- damage ---------------------------------------------------------------------------------------------------

DAMAGES: dict[str, Callable[[bytearray], bytes]] = {
    "a bit of the last tensor": lambda data: flip(data, len(data) - 1),
    "a bit in the middle": lambda data: flip(data, len(data) // 2),
    "a bit of a token": lambda data: flip(data, data.index(b"tokens") + 13),
    "a bit of the length": lambda data: flip(data, 2),
    "a brace": lambda data: flip(data, 8),
    "cut short": lambda data: bytes(data[:-5]),
    "the header alone": lambda data: bytes(data[:300]),
    "nothing": lambda data: b"",
    "something else": lambda data: b"\x10\0\0\0\0\0\0\0" + b'{"__metadata__":' + b"{}}" + bytes(40),
    "longer": lambda data: bytes(data) + b"\0",
}


def test_damaged_files_are_removed_and_told_once(hybrid: Engine, tmp_path: Path) -> None:
    written, prompt = Disk(tmp_path / "written", hybrid), words(hybrid, 50)
    written.written(prompt)
    (file,) = written.files
    longer = [*prompt, *answer(hybrid, prompt)[0], 5, 6]
    expected = answer(hybrid, longer)[0]
    for number, (name, damage) in enumerate(DAMAGES.items()):
        disk = Disk(tmp_path / str(number), hybrid)
        cache = disk.cache()
        (disk.folder / file.name).write_bytes(damage(bytearray(file.read_bytes())))
        for _ in range(2):
            assert answer(hybrid, longer, cache)[0] == expected, name
        assert disk.files == [], name
        assert len(disk.warnings) == 1, name
        assert "damaged" in disk.warnings[0]


def test_a_damaged_file_does_not_hide_another(hybrid: Engine, tmp_path: Path) -> None:
    disk, prompt = Disk(tmp_path, hybrid), words(hybrid, 70)
    disk.written([*prompt[:50], 3, 4])
    short = disk.files
    disk.written(prompt)
    (longer,) = set(disk.files) - set(short)
    longer.write_bytes(flip(bytearray(longer.read_bytes()), -9))
    tokens, reused = answer(hybrid, [*prompt, 5], disk.cache())
    assert (tokens, reused) == (answer(hybrid, [*prompt, 5])[0], 48)
    assert disk.files == short


def test_files_that_only_seem_to_be_ours(hybrid: Engine, tmp_path: Path) -> None:
    """Whole, and of the right name, but with another model's tensors in it."""
    disk, other = Disk(tmp_path / "one", hybrid), Disk(tmp_path / "other", load(TRAINED / "gemma4"))
    prompt = words(hybrid, 70)
    other.written(prompt)
    disk.folder.mkdir()
    (file,) = other.files
    shutil.copy(file, disk.folder / file.name.replace(other.key, disk.key))
    tokens, reused = answer(hybrid, [*prompt, 5], disk.cache())
    assert (tokens, reused) == (answer(hybrid, [*prompt, 5])[0], 0)
    assert disk.files == []
    assert len(disk.warnings) == 1


# -- disks that take nothing ----------------------------------------------------------------------------------


def assert_goes_on(disk: Disk, cache: PrefixCache, *prompts: list[int]) -> None:
    """Assert that turns are right, that no unfinished file is left, and that the failure was reported once."""
    for prompt in prompts:
        assert answer(disk.engine, prompt, cache)[0] == answer(disk.engine, prompt)[0]
    cache.close()
    assert disk.left() == []
    assert len(disk.warnings) == 1
    assert "the model reads it again" in disk.warnings[0]


def test_a_disk_that_seems_full(hybrid: Engine, tmp_path: Path) -> None:
    disk = Disk(tmp_path, hybrid)
    with small_disk(300 << 10):
        assert_goes_on(disk, disk.cache(), *(words(hybrid, 40, seed) for seed in range(3)))
    assert disk.files == []
    disk.written(words(hybrid, 40))
    assert len(disk.files) == 1, "with room again"


def test_a_write_that_the_kernel_refuses(hybrid: Engine, tmp_path: Path) -> None:
    for nbytes in (100, 100_000):
        disk = Disk(tmp_path / str(nbytes), hybrid)
        with small_files(nbytes):
            assert_goes_on(disk, disk.cache(), *(words(hybrid, 40, seed) for seed in range(2)))
        assert disk.files == [], nbytes


def test_a_disk_that_is_full_at_any_change(hybrid: Engine, tmp_path: Path) -> None:
    """A folder that cannot be made or written, as a read-only one, looks the same from here."""
    prompt, at = words(hybrid, 40), 0
    cache, kept = PrefixCache(PLENTY), Sequence(hybrid.target, hybrid.mtp)
    kept.prefill(prompt, boundaries=[30])
    while True:
        disk = Disk(tmp_path / str(at), hybrid)
        store = disk.store()
        disk.folder.rmdir()  # as if somebody had cleared it away meanwhile
        with Changes(tmp_path, at=at, how=OSError) as changes:
            store.save(kept)
        assert disk.left() == [] or "remove" in changes.seen[-1], changes.seen
        if not changes.reached:
            break
        assert len(disk.warnings) == (0 if "remove" in changes.seen[at] else 1), changes.seen
        at += 1
    assert at >= 3, "a folder, a file, a name"
    assert len(disk.files) == 1
    assert cache.nbytes == 0


def test_a_folder_that_is_a_file(hybrid: Engine, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    disk = Disk(tmp_path / "file", hybrid)
    cache = disk.cache()
    answer(hybrid, words(hybrid, 40), cache)
    cache.close()
    assert len(disk.warnings) == 1
    assert disk.folder.read_text() == "mine"


def test_a_folder_that_cannot_be_written_is_told_at_once(hybrid: Engine, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    disk = Disk(tmp_path / "file" / "x", hybrid)
    store = disk.store()
    assert len(disk.warnings) == 1
    assert f"{disk.folder}: no file can be written there (Not a directory)" in disk.warnings[0]
    kept = Sequence(hybrid.target, hybrid.mtp)
    kept.prefill(words(hybrid, 40))
    store.save(kept)
    assert len(disk.warnings) == 1, "and not again"
    good = Disk(tmp_path / "good", hybrid)
    good.store()
    assert (good.warnings, good.files, good.left()) == ([], [], [])


def test_a_sequence_over_the_bound_is_told_once(hybrid: Engine, tmp_path: Path) -> None:
    disk = Disk(tmp_path, hybrid, most=1000)
    store = disk.store()
    for count in (40, 50):
        kept = Sequence(hybrid.target, hybrid.mtp)
        kept.prefill(words(hybrid, count))
        store.save(kept)
    assert disk.files == []
    [told] = disk.warnings
    assert "is not kept" in told
    assert "--cache-bytes" in told


def test_a_folder_that_cannot_be_read(hybrid: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk, prompt = Disk(tmp_path, hybrid), words(hybrid, 40)
    disk.written(prompt)

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "scandir", refuse)
    assert answer(hybrid, [*prompt, 5], disk.cache()) == (answer(hybrid, [*prompt, 5])[0], 0)


# -- several processes ----------------------------------------------------------------------------------------

SHARES = """
import sys
from pathlib import Path

from mlxmtp import load
from tests.engine.disk import Disk, answer
from tests.engine.kinds import TRAINED, words

engine, number = load(TRAINED / "glm4_moe"), int(sys.argv[2])
disk = Disk(Path(sys.argv[1]), engine, most=int(sys.argv[3]))
prompts, loaded = [words(engine, 40, seed) for seed in range(3)], 0
for step in range(6):
    cache, prompt = disk.cache(), prompts[(number + step) % 3]
    tokens, _ = answer(engine, prompt, cache, depth=step % 2 and 3)
    assert tokens == answer(engine, prompt, depth=0)[0], step
    prompts[(number + step) % 3] = [*prompt, *tokens, 5]
    cache.close()
    loaded += cache.stats.loaded
print(disk.warnings, loaded)
"""


@pytest.mark.process
def test_processes_that_write_read_and_evict_in_one_folder(tmp_path: Path) -> None:
    """Drafting and plain by turns, with room for some files only: every turn is right, and nothing is damaged."""
    probe = Disk(tmp_path / "probe", load(TRAINED / "glm4_moe"))
    probe.written(words(probe.engine, 40))
    most = 4 * probe.files[0].stat().st_size
    command = [sys.executable, "-c", SHARES, str(tmp_path / "shared")]
    running = [
        subprocess.Popen([*command, str(number), str(most)], stdout=subprocess.PIPE, text=True) for number in range(2)
    ]
    told = [process.communicate(timeout=240)[0].strip() for process in running]
    assert [process.returncode for process in running] == [0] * 2, told
    assert all(one.startswith("[] ") for one in told), told
    assert any(int(one.split()[-1]) for one in told), "no file was ever read"
