"""Files in the folder of the prefix cache that no mlxmtp wrote end no turn and no start."""

import hashlib
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlxmtp import Engine, load
from mlxmtp.engine import depth_store
from mlxmtp.engine.prefix_file import METADATA_KEY, read_header
from tests.engine.disk import Disk, answer
from tests.engine.kinds import words
from tests.within import within

DEEP = "[" * 100_000


@pytest.fixture(scope="module")
def engine(raw_checkpoint: Callable[..., Path]) -> Engine:
    return load(raw_checkpoint("qwen3_5"), mtp=False)


def write_stored(disk: Disk, metadata: str | dict[str, Any]) -> None:
    """Write a file with the right key and the right digest, whose header has this metadata."""
    if isinstance(metadata, dict):
        metadata = json.dumps({METADATA_KEY: json.dumps(metadata)})
    text = ('{"__metadata__":' + metadata + "}").encode()
    content = struct.pack("<Q", len(text)) + text
    name = f"{disk.key}-{hashlib.sha256(content).hexdigest()}.safetensors"
    (disk.folder / name).write_bytes(content)


def test_a_turn_goes_on_beside_damaged_files(engine: Engine, tmp_path: Path) -> None:
    prompt = words(engine, 40)
    expected, _ = answer(engine, prompt)
    sound = {"snapshots": [[3, 0, [], False]], "tokens": prompt, "trimmable": True, "head_offset": None, "answers": []}
    damaged: list[str | dict[str, Any]] = [
        DEEP,
        json.dumps({METADATA_KEY: DEEP}),
        json.dumps({METADATA_KEY: [1]}),
        "1",
        {},
        sound | {"snapshots": []},
        sound | {"snapshots": [[float("inf"), 0, [], False]]},
        sound | {"snapshots": [[10**9, 0, [], False]]},
        sound | {"snapshots": [[-5, 0, [], False]]},
        sound | {"tokens": [None]},
        sound | {"head_offset": "far"},
        sound | {"answers": [[1]]},
        sound,  # its states are missing
    ]
    disk = Disk(tmp_path / "sound", engine)
    disk.folder.mkdir()
    write_stored(disk, sound)
    assert read_header(next(disk.folder.iterdir())).prefix_info.tokens == prompt, "each fault below is the only one"
    for number, metadata in enumerate(damaged):
        disk = Disk(tmp_path / str(number), engine)
        disk.folder.mkdir()
        write_stored(disk, metadata)
        tokens, reused = answer(engine, prompt, disk.cache())
        assert (tokens, reused) == (expected, 0), metadata
        assert len(disk.warnings) == 1, (metadata, disk.warnings)
        assert "is damaged" in disk.warnings[0], disk.warnings


def test_what_is_no_regular_file_is_left_alone(engine: Engine, tmp_path: Path) -> None:
    disk, prompt = Disk(tmp_path, engine), words(engine, 40)
    expected, _ = answer(engine, prompt)
    os.mkfifo(tmp_path / f"{disk.key}-{'1' * 64}.safetensors")
    (tmp_path / f"{disk.key}-{'2' * 64}.safetensors").symlink_to("/dev/zero")
    (tmp_path / f"{disk.key}-{'3' * 64}.safetensors").mkdir()
    os.mkfifo(tmp_path / ".prefix.0123abcd.partial")
    with within(60):
        cache = disk.cache()
        assert answer(engine, prompt, cache)[0] == expected
        cache.close()
        tokens, reused = answer(engine, prompt, disk.cache())
    assert tokens == expected
    assert reused > 30, "the cache is in use all the same"
    assert disk.warnings == []


def test_a_file_that_cannot_be_read_is_reported_once(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(tmp_path, engine)
    write_stored(disk, {})

    def refuse(file: Path) -> None:  # rights do not bind the superuser, who may run the tests
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr("mlxmtp.engine.prefix_disk.read_header", refuse)
    store = disk.store()
    for _ in range(3):
        assert store.load(words(engine, 40), engine.target, None, 0, drafting=False) is None
    assert len(disk.warnings) == 1
    assert disk.warnings[0].endswith("cannot be read (Permission denied)")


def test_the_depths_begin_anew(tmp_path: Path) -> None:
    file = tmp_path / "depth.json"
    os.mkfifo(file)
    with within(10):
        assert depth_store.load(file, 4, 4).state() == {}
    file.unlink()
    for content in (DEEP, "{", "[]", '{"a": ' + "9" * 5000 + "}", " " * 200_000):
        file.write_text(content)
        assert depth_store.load(file, 4, 4).state() == {}, content[:9]
