"""What `--depth auto` has learned of a model on a machine, kept from run to run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlxmtp.decoding.acceptance import Acceptance
from mlxmtp.decoding.auto import AutoDepth
from mlxmtp.decoding.costs import Costs
from mlxmtp.decoding.repeats import Repeats
from mlxmtp.engine.store import ModelFacts
from mlxmtp.exactness.guarantee import Identity
from mlxmtp.exactness.store import cache_file, read_json, write_json

STEPS = (1e-2, 1e3)
"""No round takes fewer plain steps, or more."""
TABLES = ("steps", "looked_up_steps")


def file_for(facts: ModelFacts, identity: Identity) -> Path:
    """The file of the policy's state, for a model with its head, its arithmetic and this machine."""
    return cache_file("depth", model=facts.drafting_key(), identity=identity)


def load(file: Path, most: int, most_repeated: int) -> AutoDepth:
    """A policy that knows what the file has; one that cannot be read costs some rounds, nothing else."""
    try:
        costs, acceptance, repeats = _known(read_json(file))
    except (ValueError, TypeError, KeyError, AttributeError):
        return AutoDepth(most, most_repeated)
    return AutoDepth(most, most_repeated, costs, acceptance, repeats)


def save(file: Path, policy: AutoDepth) -> None:
    """Write what it knows, once it has seen drafts; where nothing can be written, not."""
    steps, looked_up = policy.costs.known(), policy.costs.known(looked_up=True)
    if policy.acceptance.usual:
        shares = {"acceptance": policy.acceptance.usual, "repeats": policy.repeats.usual}
        write_json(file, {"steps": steps, "looked_up_steps": looked_up, **shares})


def _known(content: Mapping[str, Any]) -> tuple[Costs, Acceptance, Repeats]:
    steps, looked_up = ({int(k): _within(*STEPS, v) for k, v in content[name].items()} for name in TABLES)
    shares = [_within(0, 1, share) for share in content["acceptance"]]
    repeats = [[_within(0, 1, share) for share in shares] for shares in content["repeats"]]
    return Costs(steps, looked_up), Acceptance(shares), Repeats(repeats)


def _within(low: float, high: float, value: Any) -> float:
    if not isinstance(value, float | int) or not low <= value <= high:
        raise ValueError(f"{value!r} is not from {low} to {high}")
    return value
