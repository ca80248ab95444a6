"""What attach asks a Hub for: the head's bytes and the headers, each of them once, also where connections break."""

import time
from pathlib import Path

import pytest
from huggingface_hub import snapshot_download

from mlxmtp.checkpoints.tensors import read_header
from mlxmtp.conversion import sources
from mlxmtp.conversion.attach import attach
from mlxmtp.errors import CheckpointError, HeadError
from mlxmtp.files import SPARE_BYTES
from tests.conversion.faults import (
    HEAD,
    HEAD_SHARD,
    ORIGINAL,
    SAMPLE_SHARD,
    SHARDS,
    Attached,
    attached,
    head_bytes,
    in_the_head,
    small_disk,
)
from tests.hub import Fault, Hub

BLOCK = 40_000
"""So that the tiny head is fetched in four blocks."""


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "BLOCK", BLOCK)
    monkeypatch.setattr(time, "sleep", lambda _: None)


@pytest.fixture
def needed(original: Path) -> dict[str, int]:
    """Bytes by shard: of the two that matter, 8 and the header, and of these the head or the three norms compared."""
    norms = [f"model.language_model.{name}.weight" for name in
             ("norm", "layers.0.input_layernorm", "layers.0.post_attention_layernorm")]  # fmt: skip
    found = {}
    for file in (SAMPLE_SHARD, HEAD_SHARD):
        tensors = read_header(original / file)
        wanted = [info.nbytes for name, info in tensors.items() if name.startswith("mtp.") or name in norms]
        found[file] = min(info.start for info in tensors.values()) + sum(wanted)
    return found


def sent(hub: Hub) -> dict[str, int]:
    """Bytes that the server sent of each safetensors file of the original."""
    found: dict[str, int] = {}
    for request in hub.requests:
        if request.repo == ORIGINAL and request.path.endswith(".safetensors"):
            file = request.path.rpartition("/")[2]
            found[file] = found.get(file, 0) + request.sent_bytes
    return found


def test_attach_transfers_the_head_and_headers_alone(
    models: Hub, trunk: Path, whole: Attached, needed: dict[str, int], original: Path
) -> None:
    done: list[tuple[int, int]] = []
    attach(trunk, ORIGINAL, on_bytes=lambda *bytes_: done.append(bytes_))
    assert attached(trunk) == whole
    assert sent(models) == needed
    assert sum(needed.values()) < sum((original / file).stat().st_size for file in SHARDS) / 2
    assert not any(SHARDS[0] in request.path or SHARDS[3] in request.path for request in models.requests)
    assert len(done) == 5
    assert done[-1][0] == done[-1][1]


def test_a_cut_connection_is_taken_up_where_it_broke(
    models: Hub, trunk: Path, whole: Attached, needed: dict[str, int]
) -> None:
    models.faults += [*in_the_head(Fault(HEAD, "cut", value=30_000)), Fault(HEAD, "cut", times=8, value=5_000)]
    attach(trunk, ORIGINAL)
    assert attached(trunk) == whole
    assert sent(models) == needed
    ranges = [r.range for r in models.requests if r.path.endswith(HEAD_SHARD) and r.path.startswith("/cdn/")][2:12]
    starts = [int(str(asked).removeprefix("bytes=").partition("-")[0]) for asked in ranges]
    assert [start - starts[0] for start in starts] == [0, *range(30_000, 75_000, 5_000)]


@pytest.mark.parametrize("blocks", [0, 2])
def test_another_run_goes_on_after_the_last_whole_block(
    models: Hub, trunk: Path, whole: Attached, needed: dict[str, int], data: Path, original: Path, blocks: int
) -> None:
    models.faults += [Fault(HEAD, "cut", times=2 + blocks, value=1 << 40)]
    models.faults += [Fault(HEAD, "cut", value=10_000), Fault(HEAD, "cut", times=6, value=0)]
    with pytest.raises(CheckpointError, match="run the command again, it goes on"):
        attach(trunk, ORIGINAL)
    assert sent(models)[HEAD_SHARD] == needed[HEAD_SHARD] - head_bytes(original) + blocks * BLOCK + 10_000
    assert len(list((data / "partial").iterdir())) == 1
    models.requests.clear()
    with small_disk(SPARE_BYTES + head_bytes(original)):  # what is there already needs no room
        attach(trunk, ORIGINAL)
    assert attached(trunk) == whole
    assert sent(models) == needed | {HEAD_SHARD: needed[HEAD_SHARD] - blocks * BLOCK}
    assert not list((data / "partial").iterdir())


@pytest.mark.parametrize("left", [0, 100, 1_000_000])
def test_what_another_head_left_is_not_taken_for_this_one(
    models: Hub, trunk: Path, whole: Attached, needed: dict[str, int], data: Path, left: int
) -> None:
    file = sources.partial_file(ORIGINAL, models.repos[ORIGINAL].main)
    file.parent.mkdir(parents=True)
    file.write_bytes(bytes(left))
    attach(trunk, ORIGINAL)
    assert attached(trunk) == whole
    assert sent(models) == needed


def test_bytes_that_make_no_head_are_fetched_anew(
    models: Hub, trunk: Path, whole: Attached, needed: dict[str, int], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flipped bit is seen by no length; what it made must not stand in the way of the next run."""

    def damaged(*_: object, **__: object) -> None:
        raise HeadError("damaged")

    with monkeypatch.context() as patched:
        patched.setattr("mlxmtp.conversion.attach.build_head", damaged)
        with pytest.raises(HeadError, match="damaged"):
            attach(trunk, ORIGINAL)
    assert not list((data / "partial").iterdir())
    models.requests.clear()
    attach(trunk, ORIGINAL)
    assert attached(trunk) == whole
    assert sent(models) == needed


def test_a_head_that_could_not_be_written_is_not_fetched_again(
    models: Hub,
    trunk: Path,
    original: Path,
    whole: Attached,
    needed: dict[str, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object) -> None:
        raise CheckpointError("no room")

    with monkeypatch.context() as patched:
        patched.setattr("mlxmtp.conversion.attach.check_space", full)
        with pytest.raises(CheckpointError, match="no room"):
            attach(trunk, ORIGINAL)
    models.requests.clear()
    attach(trunk, ORIGINAL)
    assert attached(trunk) == whole
    assert sent(models)[HEAD_SHARD] == needed[HEAD_SHARD] - head_bytes(original)


@pytest.mark.parametrize("whole_download", [True, False])
def test_an_original_in_the_cache_is_not_fetched(
    models: Hub, trunk: Path, whole: Attached, needed: dict[str, int], whole_download: bool
) -> None:
    snapshot_download(ORIGINAL, allow_patterns=None if whole_download else ["*.json", HEAD_SHARD])
    models.requests.clear()
    attach(trunk, ORIGINAL)
    assert attached(trunk) == whole
    assert sent(models) == ({} if whole_download else needed)
