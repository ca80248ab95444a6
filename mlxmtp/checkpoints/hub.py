"""The Hub through its own client: downloads, and parts of files by byte range.

Cache, tokens, HF_ENDPOINT, offline mode and locks are the client's.
"""

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from shlex import quote
from typing import Any

from mlxmtp.checkpoints.tensors import (
    TensorInfo,
    check_complete,
    header_length,
    parse_header,
    weight_files,
)
from mlxmtp.errors import CheckpointError

REPO = re.compile(r"[\w-][\w.-]*/[\w.-]+")
FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", "*.tiktoken", "README.md"]
"""What a model's folder needs; the readme names the model that it was made from."""
BLOCK = 16 << 20
"""Bytes asked for at once, and held in memory: what a killed process loses."""
RETRIES = 5
"""How often a broken connection is taken up again without a byte coming."""


def download(repo: str, revision: str | None = None, on_bytes: Callable[[int], None] | None = None) -> Path:
    """A repo's snapshot in the Hub cache, fetched if need be.

    Args:
        on_bytes: told how many bytes have come, from several threads, in place of the client's own progress bars.

    Raises:
        CheckpointError: no such repo, no access, or no connection; the message says which.
    """
    check_name(repo)
    from huggingface_hub import snapshot_download

    with explained(repo, "be downloaded from the Hub", revision):
        bars = {"tqdm_class": _counting(on_bytes)} if on_bytes else {}
        return Path(snapshot_download(repo, revision=revision, allow_patterns=FILES, **bars))


def _counting(on_bytes: Callable[[int], None]) -> Any:
    """A class for the client's progress bars that shows nothing and reports the one that counts most bytes."""
    import huggingface_hub.utils as hub_utils

    base: Any = hub_utils.tqdm  # type: ignore[attr-defined]

    class Counting(base):  # type: ignore[misc]
        def __init__(self, *args: Any, **options: Any) -> None:
            options.pop("name", None)  # the client's own classes know it
            super().__init__(*args, **options | {"disable": True})
            self.bytes = options.get("initial", 0) if options.get("unit") == "B" else None

        def update(self, n: float | None = 1) -> None:
            if self.bytes is not None:
                self.bytes += int(n or 0)
                on_bytes(self.bytes)

    return Counting


def cached(repo: str, revision: str | None = None) -> Path | None:
    """A repo's snapshot in the Hub cache, as it is there, without asking the Hub."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None


def hub_cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def download_again(repo: str, commit: str, file: str, on_bytes: Callable[[int], None] | None = None) -> None:
    """Replace a damaged file of the Hub cache, which `download` takes for whole.

    Raises:
        CheckpointError: as `download`.
    """
    from huggingface_hub import hf_hub_download

    bars = {"tqdm_class": _counting(on_bytes)} if on_bytes else {}
    with explained(repo, "be downloaded from the Hub"):
        hf_hub_download(repo, file, revision=commit, force_download=True, **bars)


def cached_sizes(repo: str, commit: str, files: Iterable[str]) -> dict[str, int]:
    """Bytes of those of a repo's files that the Hub cache holds."""
    from huggingface_hub import try_to_load_from_cache

    found = {file: try_to_load_from_cache(repo, file, revision=commit) for file in files}
    return {file: Path(path).stat().st_size for file, path in found.items() if isinstance(path, str)}


def wanted_files(names: Iterable[str]) -> list[str]:
    """Of a repo's files, those that a model needs."""
    return [name for name in names if any(fnmatch(name, pattern) for pattern in FILES)]


def check_name(repo: str) -> None:
    """Refuse what is neither a folder nor can be a repo."""
    if not REPO.fullmatch(repo):
        raise CheckpointError(f"{repo}: no such folder; expected a model's folder or a Hub repo (owner/name)")


def upload(folder: Path, repo: str) -> str:
    """Upload a folder to a repo, made if need be; its address.

    Raises:
        CheckpointError: it cannot be uploaded. The folder is as it was.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        api.create_repo(repo, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder)
    except Exception as error:  # as in `explained`
        again = f"{folder} is complete, `hf upload {quote(repo)} {quote(str(folder))}` tries again"
        raise CheckpointError(f"{repo}: the upload failed ({reason(error)}); {again}") from error
    return f"{api.endpoint}/{repo}"


def check_upload(repo: str) -> None:
    """Refuse what can be seen not to work before there is anything to upload.

    Raises:
        CheckpointError: no name of a repo, no token, or no connection wanted.
    """
    from huggingface_hub import constants, get_token

    if not REPO.fullmatch(repo):
        raise CheckpointError(f"{repo}: expected a Hub repo (owner/name) to upload to")
    if constants.HF_HUB_OFFLINE:
        raise CheckpointError(f"{repo}: cannot be uploaded to in offline mode; unset HF_HUB_OFFLINE")
    if not get_token():
        raise CheckpointError(f"{repo}: cannot be uploaded to without a token; run `hf auth login`")


def origin(folder: Path) -> tuple[str | None, str | None]:
    """Repo and commit of a snapshot in the Hub cache (models--OWNER--NAME/snapshots/COMMIT), or nothing."""
    folder = folder.absolute()
    if folder.parent.name != "snapshots" or not (name := folder.parent.parent.name).startswith("models--"):
        return None, None
    return name.removeprefix("models--").replace("--", "/", 1), folder.name


@contextmanager
def explained(repo: str, action: str, revision: str | None = None) -> Iterator[None]:
    """The client's errors as one sentence each."""
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
    except Exception as error:  # the client lets its transport's errors through, and they have no common base
        raise CheckpointError(f"{repo}: no such folder, and it cannot {action}: {reason(error)}") from error


def reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _patience() -> int:
    """Seconds of silence after which a connection counts as broken; the client's own requests would wait for ever."""
    from huggingface_hub import constants

    return constants.HF_HUB_DOWNLOAD_TIMEOUT


@dataclass(frozen=True)
class RemoteRepo:
    """A repo on the Hub at one commit, read in parts: nothing is downloaded whole but small JSON files."""

    repo: str
    commit: str
    sizes: dict[str, int]
    """Bytes of every file."""

    @classmethod
    def open(cls, repo: str, revision: str | None = None) -> "RemoteRepo":
        """Ask the Hub what a repo holds.

        Raises:
            CheckpointError: as `download`.
        """
        check_name(repo)
        from huggingface_hub import HfApi

        with explained(repo, "be reached on the Hub", revision):
            info = HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=_patience())
        files = {file.rfilename: file.size or 0 for file in info.siblings or ()}
        return cls(repo, info.sha or revision or "main", files)

    def read(self, file: str, start: int, stop: int) -> bytes:
        """The bytes of a file from `start` up to `stop`.

        A broken connection is taken up where it broke; a busy server (5xx) or one that says when to come again (429
        with Retry-After) is waited for by the client.
        """
        content, failures = bytearray(), 0
        with explained(self.repo, f"read {file} from the Hub"):
            while len(content) < stop - start:
                try:
                    for chunk in self._chunks(file, start + len(content), stop):
                        content += chunk
                        failures = 0
                    if len(content) != stop - start:
                        found = f"{len(content)} bytes of {file} came, expected {stop - start}"
                        raise CheckpointError(f"{self.repo}: {found}; run the command again")
                except (CheckpointError, OSError):
                    raise
                except Exception as error:  # the transport's, which have no common base
                    failures += 1
                    if failures > RETRIES:
                        found = f"the connection broke {failures} times while {file} was read ({reason(error)})"
                        raise CheckpointError(f"{self.repo}: {found}; run the command again, it goes on") from error
                    time.sleep(min(2 ** (failures - 1), 8))
        return bytes(content)

    def _chunks(self, file: str, start: int, stop: int) -> Iterator[bytes]:
        """One answer of the server, piece by piece; refused before it is read where it is not what was asked for."""
        import huggingface_hub.utils as hub_utils
        from huggingface_hub import hf_hub_url

        utils: Any = hub_utils  # it exports these without saying so to type checkers
        url = hf_hub_url(self.repo, file, revision=self.commit)
        wanted = utils.build_hf_headers() | {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
        options = {"headers": wanted, "follow_redirects": True, "timeout": _patience(), "retry_on_exceptions": ()}
        with utils.http_stream_backoff("GET", url, **options) as answer:
            utils.hf_raise_for_status(answer)
            part = answer.headers.get("Content-Range", "").startswith(f"bytes {start}-")
            if not part and (start, stop) != (0, self.sizes[file]):
                raise CheckpointError(f"{self.repo}: the server does not send parts of {file}; `pull` it whole instead")
            yield from answer.iter_bytes()

    def json(self, file: str) -> dict[str, Any]:
        """A small JSON file.

        Raises:
            CheckpointError: it is not there, or no JSON object.
        """
        try:
            content = json.loads(self.small(file))
        except ValueError as error:
            raise CheckpointError(f"{self.repo}/{file}: not valid JSON ({error})") from error
        if not isinstance(content, dict):
            raise CheckpointError(f"{self.repo}/{file}: expected a JSON object")
        return content

    def small(self, file: str) -> bytes:
        if file not in self.sizes:
            raise CheckpointError(f"{self.repo}: no {file} in the repo")
        return self.read(file, 0, self.sizes[file])

    def header(self, file: str) -> dict[str, TensorInfo]:
        """The tensors of one of its safetensors files, checked against the file's size."""
        size = self.sizes[file]
        length = header_length(self.read(file, 0, 8) if size > 8 else b"", size, f"{self.repo}/{file}")
        return parse_header(self.read(file, 8, 8 + length), Path(file), size, f"{self.repo}/{file}")

    def tensors(self, wanted: Callable[[str], bool] | None = None) -> dict[str, TensorInfo]:
        """The tensors of its files; with `wanted`, of those that hold such a name, or that no index tells apart."""
        indices = {n: self.small(n) for n in self.sizes if n.endswith(".safetensors.index.json") and "/" not in n}
        files = weight_files(self.sizes)
        check_complete(self.repo, files, indices, self.sizes)
        indexed: dict[str, str] = {}
        for content in indices.values():
            indexed |= json.loads(content)["weight_map"]
        skipped = set(indexed.values()) - {file for name, file in indexed.items() if not wanted or wanted(name)}
        return {n: info for file in files if file not in skipped for n, info in self.header(file).items()}
