"""GGUF files that somebody made to do harm: each is refused at once, in one line, without much memory."""

import os
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

from mlxmtp.checkpoints import gguf_header
from mlxmtp.checkpoints.gguf_files import open_local_gguf
from mlxmtp.cli import main
from mlxmtp.errors import CheckpointError
from tests.grids import cases
from tests.within import within

SECONDS = 20.0
"""For a refusal, on a busy machine."""
MEMORY = 8 << 20
"""Bytes that Python may allocate to refuse a file, or to read a small one."""
HUGE = 1 << 62
EXTREMES = (0, 1, 255, 1 << 31, HUGE, (1 << 64) - 1)

Entry = tuple[bytes, int, bytes]
Tensor = tuple[bytes, list[int], int, int]


def text(value: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(value) if length is None else length) + value


def array(kind: int, count: int, content: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + content


ARCHITECTURE: Entry = (b"general.architecture", 8, text(b"qwen35"))
NORM: Tensor = (b"blk.1.nextn.enorm.weight", [64], 0, 0)
PROJECTION: Tensor = (b"blk.1.nextn.eh_proj.weight", [128, 64], 8, 256)


def content(
    entries: list[Entry] | None = None,
    tensors: list[Tensor] | None = None,
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    counts: tuple[int | None, int | None] = (None, None),
    data: int = 256 + 64 * 4 * 34,
) -> bytes:
    """A file with these entries (key, type, value) and tensors (name, sizes, type, offset)."""
    entries = [ARCHITECTURE] if entries is None else entries
    tensors = [NORM, PROJECTION] if tensors is None else tensors
    count = [len(own) if stated is None else stated for own, stated in zip((tensors, entries), counts, strict=True)]
    out = magic + struct.pack("<IQQ", version, *count)
    for key, kind, value in entries:
        out += text(key) + struct.pack("<I", kind) + value
    for name, sizes, kind, offset in tensors:
        out += text(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, offset)
    return out + bytes(-len(out) % 32 + data)


FAULTS: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "not a GGUF file (0 bytes, expected b'GGUF')"),
    "short": (b"GGUF\3\0\0\0", "not a GGUF file (8 bytes, expected b'GGUF')"),
    "magic": (content(magic=b"GGML"), "not a GGUF file (it begins with b'GGML', expected b'GGUF')"),
    "zip": (content(magic=b"PK\3\4"), r"not a GGUF file (it begins with b'PK\x03\x04', expected b'GGUF')"),
    "big-endian": (content(version=3 << 24), "a big-endian GGUF file, expected a little-endian one"),
    "version 1": (content(version=1), "GGUF version 1, expected 2 or 3; take a newer conversion"),
    "version 9": (content(version=9), "GGUF version 9, expected 2 or 3"),
    "tensors": (content(counts=(HUGE, None)), f"{HUGE} tensors, expected 285 at most in 9.2 kB"),
    "entries": (content(counts=(None, HUGE)), f"{HUGE} metadata entries, expected 702 at most in 9.2 kB"),
    "cut": (content(data=256), "448 bytes, expected 9152 or more: the file is cut short; download it again"),
    "key": (content([(b"x" * 1025, 4, bytes(4))]), "a metadata entry with a name of 1025 bytes, expected 1 to 1024"),
    "no key": (content([(b"", 4, bytes(4))]), "a metadata entry with a name of 0 bytes, expected 1 to 1024"),
    "key of 4 GB": (content()[:24] + text(b"x", 1 << 32) + bytes(999), "with a name of 4294967296 bytes, expected"),
    "key in UTF-16": (content([(b"\xff\xfex", 4, bytes(4))]), r"a metadata entry called b'\xff\xfex', expected UTF-8"),
    "line ends": (content(tensors=[(b"a\nb", [64], 0, 0)]), r"a tensor called b'a\nb', expected UTF-8 text"),
    "two keys": (content([ARCHITECTURE, ARCHITECTURE]), "two metadata entries 'general.architecture', expected one"),
    "two tensors": (content(tensors=[NORM, NORM]), "two tensors 'blk.1.nextn.enorm.weight', expected one"),
    "text of 4 GB": (content([(b"a", 8, text(b"", 1 << 32))]), "bytes, and its header goes on to 4294967"),
    "value": (content([(b"a", 77, bytes(4))]), "a of type 77, expected one of 0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12 or 8"),
    "nested": (content([(b"a", 9, array(9, 1, array(9, 1)))]), "a, an array of arrays, expected one of numbers or"),
    "array": (content([(b"a", 9, array(4, HUGE))]), "and its header goes on to 18446744"),
    "texts": (content([(b"a", 9, array(8, 10**12))]), "and its header goes on to 8000000000"),
    "array type": (content([(b"a", 9, array(13, 2))]), "a of type 13, expected one of 0, 1, 2"),
    "text in array": (content([(b"a", 9, array(8, 1, text(b"", HUGE)))]), "and its header goes on to 461168"),
    "alignment": (
        content([(b"general.alignment", 4, struct.pack("<I", 24))]),
        "general.alignment 24, expected a power",
    ),
    "no alignment": (content([(b"general.alignment", 4, bytes(4))]), "general.alignment 0, expected a power of two up"),
    "alignment text": (content([(b"general.alignment", 8, text(b"x"))]), "general.alignment 'x', expected a power of"),
    "alignment huge": (
        content([(b"general.alignment", 4, struct.pack("<I", 1 << 31))]),
        "general.alignment 2147483648",
    ),
    "dimensions": (content(tensors=[(b"a", [1] * 5, 0, 0)]), "a of 5 dimensions, expected 1 to 4"),
    "scalar": (content(tensors=[(b"a", [], 0, 0)]), "a of 0 dimensions, expected 1 to 4"),
    "empty": (content(tensors=[(b"a", [64, 0], 0, 0)]), "a of shape [0, 64], expected sizes from 1 up to"),
    "product": (content(tensors=[(b"a", [1 << 32, 1 << 32], 0, 0)]), "a of shape [4294967296, 4294967296], expected"),
    "columns": (content(tensors=[(b"a", [48, 2], 8, 0)]), "a in Q8_0 with 48 columns, expected a multiple of 32"),
    "offset": (content(tensors=[(b"a", [64], 0, 17)]), "a begins at 17, expected a multiple of 32"),
    "past the end": (content(tensors=[(b"a", [64], 0, 1 << 40)]), "expected 10995116"),
    "wraps": (content(tensors=[(b"a", [64], 0, (1 << 64) - 32)]), "expected 18446744073709551"),
    "overlap": (content(tensors=[NORM, (b"b", [8], 0, 224)]), "blk.1.nextn.enorm.weight and b share bytes, expected"),
    "unknown type twice": (content(tensors=[(b"a", [8], 999, 0), (b"b", [8], 999, 0)]), "a and b share bytes"),
    "unknown type": (content(tensors=[NORM, (*PROJECTION[:2], 139, 256)]), "eh_proj.weight is stored as type 139, exp"),
    "architecture": (content([]), "heads of the GGUF architecture '' are not read; expected bailingmoe2, "),
    "no text": (content([(b"general.architecture", 4, bytes(4))]), "heads of the GGUF architecture '' are not read"),
    "two lines": (content([(*ARCHITECTURE[:2], text(b"a\nmlxmtp: b"))]), "heads of the GGUF architecture '' are not"),
}


@contextmanager
def traced(name: str) -> Iterator[None]:
    """The block allocates little."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < MEMORY, name


@pytest.fixture
def refused(model: Path, capsys: pytest.CaptureFixture[str]) -> Callable[[Path, str, str], None]:
    """A function that runs `mlxmtp attach` and compares its one line."""

    def attach(file: Path, says: str, name: str) -> None:
        with within(SECONDS), traced(name), suppress(CheckpointError):
            open_local_gguf(file)
        with within(SECONDS):
            code = main(["attach", str(model), "--from", str(file), "--no-check"])
        told = [line for line in capsys.readouterr().err.splitlines() if "Fetching" not in line]
        assert (code, len(told)) == (2, 1), (name, told)
        assert says in told[0], (name, told)

    return attach


@pytest.fixture(scope="module")
def model(raw_checkpoint: Callable[..., Path]) -> Path:
    return raw_checkpoint("qwen3_5", head=False, layers=2, interval=2)


def test_headers_that_contradict_themselves(
    refused: Callable[[Path, str, str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "x.gguf"
    file.write_bytes(content())
    refused(file, "has num_hidden_layers 1", "the file without a fault: another model's, but read")
    for name, (written, says) in FAULTS.items():
        file.write_bytes(written)
        refused(file, says, name)
    file.unlink()
    os.mkfifo(file)
    refused(file, "not a GGUF file (0 bytes", "a FIFO")
    file.unlink()
    file.symlink_to("/dev/zero")
    refused(file, "not a GGUF file (0 bytes", "a device")
    file.unlink()
    with file.open("wb") as out:  # sparse: the entry's text is inside the file, and longer than any header
        out.write(content([(b"a", 8, text(b"", 1 << 33))], []))
        out.truncate(1 << 34)
    refused(file, "more than 67.1 MB, expected less", "a header without end")
    monkeypatch.setattr(gguf_header, "HEADER_BLOCK", 7)
    file.write_bytes(content([ARCHITECTURE, (b"a", 9, array(8, 3, text(b"one") + text(b"") + text(b"three")))]))
    refused(file, "has num_hidden_layers 1", "a header in many blocks")


@pytest.mark.parametrize("files", cases([400, 20_000], default=[400]))
def test_random_damage_is_refused_or_harmless(tmp_path: Path, files: int) -> None:
    """Bytes of a header changed, cut out or repeated (seed 0): a line of ours, or a header inside the file."""
    entries = [ARCHITECTURE, (b"a", 9, array(8, 2, text(b"x") + text(b"yy"))), (b"b", 9, array(4, 2, bytes(8)))]
    right = content([*entries, (b"c", 6, bytes(4)), (b"general.alignment", 4, struct.pack("<I", 32))])
    header, rng, read = len(right) - 8960, np.random.default_rng(0), 0
    file = tmp_path / "x.gguf"
    with traced("some of the files"):
        for number in range(files):
            damaged = bytearray(right)
            for _ in range(rng.integers(1, 4)):
                at, other = rng.integers(0, header, 2)
                match rng.integers(0, 4):
                    case 0:
                        damaged[at] = rng.integers(0, 256)
                    case 1:
                        damaged[at : at + 8] = struct.pack("<Q", EXTREMES[rng.integers(0, len(EXTREMES))])
                    case 2:
                        del damaged[at : at + rng.integers(1, 40)]
                    case _:
                        damaged[at:at] = damaged[other : other + 40]
            file.write_bytes(damaged)
            with suppress(CheckpointError):
                found = open_local_gguf(file)
                assert found is not None
                assert all(0 < t.start <= t.stop <= len(damaged) for t in found.header.tensors.values()), number
                read += 1
    assert 0 < read < files / 2, "the damage is of no kind that matters, or always the same"
