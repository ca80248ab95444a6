"""Remove a repo from the Hub cache, and nothing else."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mlxmtp.checkpoints.hub import hub_cache
from mlxmtp.errors import CheckpointError
from mlxmtp.files import try_lock


@dataclass(frozen=True)
class CachedRepo:
    """A repo's folder in the Hub cache.

    Args:
        repo: owner/name.
        folder: the folder, which is no link.
        nbytes: of the files in it. Links are not followed: what they lead to elsewhere stays.
    """

    repo: str
    folder: Path
    nbytes: int


def cached_repo(repo: str) -> CachedRepo:
    """Return a repo's folder in the Hub cache, and its size.

    Raises:
        CheckpointError: the cache has no such repo, or a link stands in its place.
    """
    folder = hub_cache() / f"models--{repo.replace('/', '--')}"
    if folder.is_symlink():
        raise CheckpointError(f"{repo}: {folder} is a link; nothing is removed; remove it and its target yourself")
    if not folder.is_dir():
        raise CheckpointError(f"{repo}: not in the Hub cache, {hub_cache()}; `mlxmtp list` shows what is there")
    return CachedRepo(repo, folder, sum(_sizes(folder)))


def remove_cached(found: CachedRepo) -> None:
    """Remove a repo from the cache. Its refs go first: after a failure halfway nothing takes it for complete.

    Raises:
        CheckpointError: a download of it is running. OSError: the disk refused.
    """
    locks = hub_cache() / ".locks" / found.folder.name
    with _no_download(found.repo, locks):
        for part in ("refs", "snapshots"):
            if (found.folder / part).is_dir():
                shutil.rmtree(found.folder / part)
        shutil.rmtree(found.folder)


def _sizes(folder: Path) -> Iterator[int]:
    """Yield the size of each file, once for each inode."""
    seen = set()
    for parent, _, names in os.walk(folder):
        for name in names:
            info = os.lstat(os.path.join(parent, name))
            if not os.path.islink(os.path.join(parent, name)) and info.st_ino not in seen:
                seen.add(info.st_ino)
                yield info.st_size


@contextmanager
def _no_download(repo: str, locks: Path) -> Iterator[None]:
    """Hold the client's lock of each file of a repo.

    Raises:
        CheckpointError: another process holds one.
    """
    handles: list[int] = []
    try:
        for file in sorted(locks.glob("*.lock")):
            handles.append(os.open(file, os.O_RDWR | os.O_NOFOLLOW))
            if not try_lock(handles[-1]):
                raise CheckpointError(f"{repo}: it is being downloaded; nothing is removed; stop the download first")
        yield
    finally:
        for handle in handles:
            os.close(handle)
