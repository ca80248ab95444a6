"""The Hugging Face Hub through its own client: download, upload, and the client's cache.

Cache, tokens, HF_ENDPOINT, offline mode and locks are the client's.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from shlex import quote
from typing import Any

from mlxmtp.checkpoints.tensors import HEADS, WEIGHTS
from mlxmtp.errors import CheckpointError
from mlxmtp.names import REPO, check_name

FILES = ["*.json", WEIGHTS, HEADS, "*.jinja", "*.txt", "*.model", "*.tiktoken", "README.md"]
"""Patterns of the files that a model needs. The readme names the model that it was made from."""


def download(repo: str, revision: str | None = None, on_bytes: Callable[[int], None] | None = None) -> Path:
    """Return the folder of a repo's snapshot in the Hub cache; download what is missing.

    Args:
        on_bytes: called with the bytes received so far, from several threads; None: the client shows progress bars.

    Raises:
        CheckpointError: no such repo, no access, or no connection; the message says which.
    """
    check_name(repo)
    from huggingface_hub import snapshot_download

    with explained(repo, "be downloaded from the Hub", revision):
        bars = {"tqdm_class": _counting(on_bytes)} if on_bytes else {}
        return Path(snapshot_download(repo, revision=revision, allow_patterns=FILES, **bars))


def _counting(on_bytes: Callable[[int], None]) -> Any:
    """Return a class for the client's progress bars that shows nothing and reports the bytes of each bar."""
    import huggingface_hub.utils as hub_utils

    base: Any = hub_utils.tqdm  # type: ignore[attr-defined]

    class Counting(base):  # type: ignore[misc]
        def __init__(self, *args: Any, **options: Any) -> None:
            options.pop("name", None)  # an option of the client's own class
            super().__init__(*args, **options | {"disable": True})
            self.bytes = options.get("initial", 0) if options.get("unit") == "B" else None

        def update(self, n: float | None = 1) -> None:
            if self.bytes is not None:
                self.bytes += int(n or 0)
                on_bytes(self.bytes)

    return Counting


def cached(repo: str, revision: str | None = None) -> Path | None:
    """Return the folder of a repo's snapshot in the Hub cache, perhaps incomplete, without a request to the Hub."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None


def hub_cache() -> Path:
    """Return the folder of the Hub cache."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def download_again(repo: str, commit: str, file: str, on_bytes: Callable[[int], None] | None = None) -> None:
    """Replace a damaged file in the Hub cache, which `download` would leave as it is.

    Raises:
        CheckpointError: as `download`.
    """
    from huggingface_hub import hf_hub_download

    bars = {"tqdm_class": _counting(on_bytes)} if on_bytes else {}
    with explained(repo, "be downloaded from the Hub"):
        hf_hub_download(repo, file, revision=commit, force_download=True, **bars)


def cached_sizes(repo: str, commit: str, files: Iterable[str]) -> dict[str, int]:
    """Return the size in bytes of each of `files` that is in the Hub cache."""
    from huggingface_hub import try_to_load_from_cache

    found = {file: try_to_load_from_cache(repo, file, revision=commit) for file in files}
    return {file: Path(path).stat().st_size for file, path in found.items() if isinstance(path, str)}


def wanted_files(names: Iterable[str]) -> list[str]:
    """Return the names that match `FILES`."""
    return [name for name in names if any(fnmatch(name, pattern) for pattern in FILES)]


def upload(folder: Path, repo: str) -> str:
    """Upload a folder to a repo, which is created if it does not exist; return the repo's address.

    Raises:
        CheckpointError: it cannot be uploaded. The folder is unchanged.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        api.create_repo(repo, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder)
    except Exception as error:  # see `explained`
        again = f"{folder} is complete, `hf upload {quote(repo)} {quote(str(folder))}` tries again"
        raise CheckpointError(f"{repo}: the upload failed ({reason(error)}); {again}") from error
    return f"{api.endpoint}/{repo}"


def check_upload(repo: str) -> None:
    """Refuse an upload that would fail, before the work on the files begins.

    Raises:
        CheckpointError: not the name of a repo, no token, or offline mode.
    """
    from huggingface_hub import constants, get_token

    if not REPO.fullmatch(repo):
        raise CheckpointError(f"{repo}: expected a Hub repo (owner/name) to upload to")
    if constants.HF_HUB_OFFLINE:
        raise CheckpointError(f"{repo}: cannot be uploaded to in offline mode; unset HF_HUB_OFFLINE")
    if not get_token():
        raise CheckpointError(f"{repo}: cannot be uploaded to without a token; run `hf auth login`")


def origin(folder: Path) -> tuple[str | None, str | None]:
    """Return repo and commit of a snapshot folder (models--OWNER--NAME/snapshots/COMMIT), or (None, None)."""
    folder = folder.absolute()
    if folder.parent.name != "snapshots" or not (name := folder.parent.parent.name).startswith("models--"):
        return None, None
    return name.removeprefix("models--").replace("--", "/", 1), folder.name


@contextmanager
def explained(repo: str, action: str, revision: str | None = None) -> Iterator[None]:
    """Raise the client's errors as `CheckpointError`, one sentence each.

    Args:
        action: completes "cannot ..." in the message.

    Raises:
        CheckpointError: the Hub refused, has no such repo, or cannot be reached. OSError: the disk failed.
    """
    from huggingface_hub import errors

    try:
        yield
    except (CheckpointError, KeyboardInterrupt):
        raise
    except errors.GatedRepoError as error:
        raise CheckpointError(f"{repo}: gated; accept its terms on the Hub, then run `hf auth login`") from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(f"{repo}: the repo has no branch, tag or commit {revision!r}") from error
    except errors.RemoteEntryNotFoundError as error:
        raise CheckpointError(f"{repo}: cannot {action}: no such file, {error.response.url}") from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        missing = "no such folder, and no such repo on the Hub, or no access to it (`hf auth login` gives access)"
        raise CheckpointError(f"{repo}: {missing}") from error
    except OSError as error:
        if getattr(error, "errno", None):  # the disk, not the network
            raise OSError(f"{repo}: cannot {action}: {error}") from error
        refused = isinstance(error, errors.HfHubHTTPError) and error.response.status_code in (401, 403)
        remedy = "; `hf auth login` gives access" if refused else ""
        raise CheckpointError(f"{repo}: cannot {action}: {reason(error)}{remedy}") from error
    except Exception as error:  # the transport's errors have no common base class
        raise CheckpointError(f"{repo}: no such folder, and it cannot {action}: {reason(error)}") from error


def reason(error: Exception) -> str:
    """Return the first line of an error's message, or the name of its class; that the network fails, in our words."""
    if unconnected(error):
        from huggingface_hub import constants

        return f"no connection to {constants.ENDPOINT}; a folder, or a model in the Hub cache, needs none"
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def unconnected(error: BaseException | None) -> bool:
    """Return whether an error is, or comes from, a connection that was not made. The transport is an inner matter."""
    while error is not None:
        if type(error).__name__ in ("ConnectError", "ConnectTimeout"):
            return True
        error = error.__cause__ or error.__context__
    return False


def timeout_s() -> int:
    """Return the seconds of silence after which a connection counts as broken.

    The client's own downloads use it too; its other requests would wait for ever.
    """
    from huggingface_hub import constants

    return constants.HF_HUB_DOWNLOAD_TIMEOUT
