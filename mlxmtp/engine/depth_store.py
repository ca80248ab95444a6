"""The saved state of `--depth auto`: what it learned of a model on a machine goes from run to run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mlxmtp.decoding.auto_depth import AutoDepth
from mlxmtp.decoding.coverage import Coverage
from mlxmtp.engine.store import ModelFacts
from mlxmtp.exactness.guarantee import Identity
from mlxmtp.exactness.store import cache_file, read_json, write_json
from mlxmtp.limits import MAX_DEPTH


def file_for(facts: ModelFacts, identity: Identity) -> Path:
    """The file of the policy's state, for a model with its head, its arithmetic and this machine."""
    return cache_file("depth", model=facts.drafting_key(), identity=identity)


def load(
    file: Path,
    max_depth: int,
    max_lookup: int,
    coverage: Coverage | None = None,
    longest_shared: Callable[[int], int] = lambda _: MAX_DEPTH + 1,
) -> AutoDepth:
    """The policy that the file has the state of; without a sound file, one that begins with nothing known."""
    try:
        return AutoDepth.from_state(read_json(file), max_depth, max_lookup, coverage, longest_shared)
    except ValueError:
        return AutoDepth(max_depth, max_lookup, coverage=coverage, longest_shared=longest_shared)


def save(file: Path, policy: AutoDepth) -> None:
    """Write the policy's state once it has verified drafts; a file that cannot be written is left out."""
    if state := policy.state():
        write_json(file, state)
