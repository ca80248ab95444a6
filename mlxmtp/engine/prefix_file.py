"""A sequence as a safetensors file: its arrays, and in the metadata the facts that put them together again."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlxmtp.checkpoints.tensors import header_length, parse_header
from mlxmtp.checkpoints.writer import DTYPES, header, raw_bytes
from mlxmtp.decoding.sequence import Sequence
from mlxmtp.decoding.snapshots import Position, PrefixInfo, Snapshot
from mlxmtp.files import open_regular, parse_json
from mlxmtp.heads import Head
from mlxmtp.targets import CacheState, Target

METADATA_KEY = "mlxmtp_prefix"
"""The key of a file's metadata that holds the description of its tensors."""
READ_BYTES = 4 << 20
"""Bytes that are hashed at a time."""


@dataclass(frozen=True)
class StoredSequence:
    """A file, as far as its header tells.

    Args:
        facts: how its tensors make up the sequence.
    """

    file: Path
    prefix_info: PrefixInfo
    facts: dict[str, Any]


def write_sequence(stage: Path, arrays: dict[str, mx.array], facts: dict[str, Any]) -> str:
    """Write a file; return the SHA-256 of its bytes in hexadecimal."""
    layout = [(name, DTYPES[array.dtype], array.shape, array.nbytes) for name, array in arrays.items()]
    digest = hashlib.sha256()
    with stage.open("wb") as out:
        for piece in (header(layout, {METADATA_KEY: json.dumps(facts)}), *map(raw_bytes, arrays.values())):
            out.write(piece)
            digest.update(piece)
    return digest.hexdigest()


def pack(sequence: Sequence, snapshots: list[Snapshot]) -> tuple[dict[str, mx.array], dict[str, Any]]:
    """Return the arrays of a sequence by name, and the facts that put them together again."""
    arrays: dict[str, mx.array] = {}
    prefix_info, described = sequence.prefix_info, []
    for number, snapshot in enumerate([*snapshots, sequence.snapshot]):
        states: list[Any] = []
        for i, state in enumerate(snapshot.states):
            given = {f"{number}.{i}.{j}": array for j, array in enumerate(state.arrays if state else ())}
            arrays |= {name: array for name, array in given.items() if array is not None}
            states.append(state and [[name if name in arrays else None for name in given], state.offset, state.slot])
        if snapshot.pending is not None:
            arrays[f"{number}.pending"] = snapshot.pending
        described.append([snapshot.position.offset, snapshot.position.pending, states, snapshot.within])
    facts = {
        "snapshots": described,
        "tokens": prefix_info.tokens,
        "trimmable": prefix_info.trimmable,
        "head_offset": prefix_info.head_offset,
        "answers": prefix_info.answers,
    }
    return arrays, facts


def read_header(file: Path) -> StoredSequence:
    """Return what the header of a file tells.

    Raises:
        OSError: the file cannot be read.
        CheckpointError, ArithmeticError, ValueError, KeyError, TypeError: it is damaged.
    """
    with open_regular(file) as stream:
        nbytes = os.fstat(stream.fileno()).st_size
        text = stream.read(header_length(stream.read(8), nbytes, file.name))
    parse_header(text, file, nbytes, file.name)
    facts = parse_json(parse_json(text)["__metadata__"][METADATA_KEY])
    tokens = list(map(int, facts["tokens"]))
    *positions, end = (Position(int(offset), int(pending)) for offset, pending, *_ in facts["snapshots"])
    if not all(0 <= position.offset <= len(tokens) for position in (*positions, end)):
        raise ValueError(f"a snapshot is not at one of the {len(tokens)} tokens")
    head_offset = facts["head_offset"]
    prefix_info = PrefixInfo(
        tokens=tokens,
        end=end,
        positions=tuple(positions),
        trimmable=bool(facts["trimmable"]),
        head_offset=None if head_offset is None else int(head_offset),
        answers=tuple((int(start), int(end)) for start, end in facts["answers"]),
    )
    return StoredSequence(file, prefix_info, facts)


def unpack(stored: StoredSequence, target: Target, head: Head | None) -> Sequence:
    """Return the sequence of a file.

    Args:
        head: of the model; a file keeps what the head has read, whether the next turn drafts or not.

    Raises:
        CheckpointError, ValueError, KeyError, TypeError, IndexError, RuntimeError: it is damaged.
    """
    arrays: Any = mx.load(str(stored.file))
    mx.eval(arrays)
    snapshots = []
    for number, (offset, _, described, within) in enumerate(stored.facts["snapshots"]):
        states = tuple(
            state and CacheState(tuple(name and arrays[name] for name in state[0]), state[1], state[2])
            for state in described
        )
        snapshots.append(Snapshot(offset, states, arrays.get(f"{number}.pending"), bool(within)))
    return Sequence.from_snapshots(target, head, stored.prefix_info, snapshots[:-1], snapshots[-1])


def digest_of(file: Path) -> str:
    """Return the SHA-256 of a file's bytes in hexadecimal."""
    digest = hashlib.sha256()
    with open_regular(file) as stream:
        for block in iter(partial(stream.read, READ_BYTES), b""):
            digest.update(block)
    return digest.hexdigest()
