"""Models of the Hub and its cache. Imports are inside the functions: a worker that only generates needs none."""

from __future__ import annotations

from collections.abc import Callable

from mlxmtp.errors import CheckpointError
from mlxmtp.worker.messages import CachedModel, Models

OnDownload = Callable[[str, int, int], None]
"""Called with the repo, the bytes that are downloaded, and the total."""


def list_models(id: int) -> Models:
    """The models of the Hub cache, as the answer to the command `id`."""
    from mlxmtp.conversion.inspect import inspect_cache
    from mlxmtp.conversion.reports import CheckpointReport
    from mlxmtp.machine import usable_memory

    models = []
    for report in inspect_cache():
        if isinstance(report, CheckpointReport):
            nbytes = report.trunk.nbytes + (report.head.weights.nbytes if report.head else 0)
            family = report.head.family if report.head else None
            models.append(CachedModel(report.name, nbytes, family, report.support, report.because))
        else:
            models.append(CachedModel(report.name, 0, None, "refused", report.error))
    return Models(id, models, usable_memory())


def download(repo: str, head: str | None, on_download: OnDownload) -> str | None:
    """Download a repo and its head.

    Args:
        head: the repo to take the head from where `repo` has none.

    Returns:
        A warning where the head is missing or the model will not run on this machine.

    Raises:
        CheckpointError: the repo cannot be downloaded, or is not a model.
    """
    from mlxmtp.checkpoints import open_checkpoint
    from mlxmtp.conversion.attach import attach
    from mlxmtp.conversion.pull import has_head, head_to_pull, plan_pull, pull

    plan = plan_pull(repo)
    folder = pull(plan, lambda done, total: on_download(repo, done, total))
    try:
        if head is not None and not has_head(folder):
            attach(repo, head, on_bytes=lambda done, total: on_download(head, done, total))
        elif head_repo := head_to_pull(folder):
            pull(plan_pull(head_repo), lambda done, total: on_download(head_repo, done, total))
    except CheckpointError as error:
        return f"the model is here, its head is not: {error}"
    open_checkpoint(folder)
    return plan.memory_warning


def download_missing(repo: str, on_download: OnDownload) -> None:
    """Download what `load` would download without progress. Without a connection the cache has to do."""
    from mlxmtp.conversion.pull import plan_pull

    try:
        missing = plan_pull(repo).missing_bytes
    except CheckpointError:
        return  # `load` raises it
    if missing:
        download(repo, None, on_download)
