"""The worker's dealings with the Hub and its cache. What they need is imported when they are called for."""

from __future__ import annotations

from collections.abc import Callable

from mlxmtp.errors import CheckpointError
from mlxmtp.worker.messages import ModelFound, Models

OnBytes = Callable[[str, int, int], None]
"""Told what is fetched, the bytes done and all of them."""


def listed(number: int) -> Models:
    """The models of the local cache, in answer to the command of this number."""
    from mlxmtp.conversion.inspect import Report, inspect_cache
    from mlxmtp.machine import usable_memory

    found = []
    for one in inspect_cache():
        if isinstance(one, Report):
            nbytes = one.trunk.nbytes + (one.head.weights.nbytes if one.head else 0)
            family = one.head.family if one.head else None
            found.append(ModelFound(one.name, nbytes, family, one.verdict, one.because))
        else:
            found.append(ModelFound(one.name, 0, None, "refused", one.error))
    return Models(number, found, usable_memory())


def fetch(repo: str, head: str | None, on_bytes: OnBytes) -> str | None:
    """Download a repo and its head; what is short of it.

    Args:
        head: where to take one from if the repo has none.

    Raises:
        CheckpointError: it cannot be fetched, or is no model.
    """
    from mlxmtp.checkpoints import open_checkpoint
    from mlxmtp.conversion.attach import attach
    from mlxmtp.conversion.pull import has_head, head_to_pull, plan_pull, pull

    plan = plan_pull(repo)
    snapshot = pull(plan, lambda done, total: on_bytes(repo, done, total))
    try:
        if head is not None and not has_head(snapshot):
            attach(repo, head, on_bytes=lambda done, total: on_bytes(head, done, total))
        elif other := head_to_pull(snapshot):
            pull(plan_pull(other), lambda done, total: on_bytes(other, done, total))
    except CheckpointError as error:
        return f"the model is here, its head is not: {error}"
    open_checkpoint(snapshot)
    return plan.memory_warning


def fetch_what_is_missing(repo: str, on_bytes: OnBytes) -> None:
    """Of a repo that `load` would download in silence; without a connection, what is there has to do."""
    from mlxmtp.conversion.pull import plan_pull

    try:
        missing = plan_pull(repo).missing_bytes
    except CheckpointError:
        return  # `load` says it
    if missing:
        fetch(repo, None, on_bytes)
