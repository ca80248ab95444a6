"""Read parts of a repo on the Hub by byte range, without a download."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxmtp.checkpoints.hub import explained, reason, timeout_s
from mlxmtp.checkpoints.tensors import (
    TensorInfo,
    Tensors,
    check_complete,
    header_length,
    index_files,
    parse_header,
    read_index,
    weight_files,
)
from mlxmtp.errors import CheckpointError
from mlxmtp.files import MAX_FILE_BYTES, parse_json
from mlxmtp.names import check_name
from mlxmtp.units import size

BLOCK = 16 << 20
"""Bytes of one request, held in memory; a killed process loses at most this much of a download."""
RETRIES = 5
"""Connections that may break one after another without a byte received; then the read fails."""


@dataclass(frozen=True)
class RemoteRepo:
    """A repo on the Hub at one commit, read in byte ranges; only small JSON files are read whole.

    Args:
        repo: owner/name.
        commit: the commit's hash.
        sizes: bytes of each file, by name.
    """

    repo: str
    commit: str
    sizes: dict[str, int]

    @classmethod
    def open(cls, repo: str, revision: str | None = None) -> "RemoteRepo":
        """Request the list of a repo's files.

        Raises:
            CheckpointError: no such repo or revision, no access, or no connection.
        """
        check_name(repo)
        from huggingface_hub import HfApi

        with explained(repo, "be reached on the Hub", revision):
            info = HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=timeout_s())
        files = {file.rfilename: file.size or 0 for file in info.siblings or ()}
        return cls(repo, info.sha or revision or "main", files)

    def read(self, file: str, start: int, stop: int) -> bytes:
        """Return bytes `start` to `stop` of a file.

        After a broken connection the rest is requested, at most `RETRIES` times without a byte. The client itself
        waits for a busy server (5xx, or 429 with Retry-After).

        Raises:
            CheckpointError: the server refuses, sends another length, or the connection breaks too often.
        """
        content, failures = bytearray(), 0
        with explained(self.repo, f"read {file} from the Hub"):
            while len(content) < stop - start:
                try:
                    for chunk in self._chunks(file, start + len(content), stop):
                        content += chunk
                        failures = 0
                        if len(content) > stop - start:
                            break
                    if len(content) != stop - start:
                        found = f"{len(content)} bytes of {file} came, expected {stop - start}"
                        raise CheckpointError(f"{self.repo}: {found}; run the command again")
                except (CheckpointError, OSError):
                    raise
                except Exception as error:  # the transport's errors have no common base class
                    failures += 1
                    if failures > RETRIES:
                        found = f"the connection broke {failures} times while {file} was read ({reason(error)})"
                        raise CheckpointError(f"{self.repo}: {found}; run the command again, it goes on") from error
                    time.sleep(min(2 ** (failures - 1), 8))
        return bytes(content)

    def _chunks(self, file: str, start: int, stop: int) -> Iterator[bytes]:
        """Yield the content of one response; refuse a response to another range before it is read."""
        import huggingface_hub.utils as hub_utils
        from huggingface_hub import hf_hub_url

        utils: Any = hub_utils  # its exports are not declared to type checkers
        url = hf_hub_url(self.repo, file, revision=self.commit)
        wanted = utils.build_hf_headers() | {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
        options = {"headers": wanted, "follow_redirects": True, "timeout": timeout_s(), "retry_on_exceptions": ()}
        with utils.http_stream_backoff("GET", url, **options) as answer:
            utils.hf_raise_for_status(answer)
            part = answer.headers.get("Content-Range", "").startswith(f"bytes {start}-")
            if not part and (start, stop) != (0, self.sizes[file]):
                raise CheckpointError(f"{self.repo}: the server does not send parts of {file}; `pull` it whole instead")
            yield from answer.iter_bytes()

    def json(self, file: str) -> dict[str, Any]:
        """Return the object in a small JSON file.

        Raises:
            CheckpointError: there is no such file, or it is not a JSON object.
        """
        try:
            content = parse_json(self.small(file))
        except ValueError as error:
            raise CheckpointError(f"{self.repo}/{file}: not valid JSON ({error})") from error
        if not isinstance(content, dict):
            raise CheckpointError(f"{self.repo}/{file}: expected a JSON object")
        return content

    def small(self, file: str) -> bytes:
        """Return the content of a small file.

        Raises:
            CheckpointError: there is no such file, or it is too large.
        """
        if file not in self.sizes:
            raise CheckpointError(f"{self.repo}: no {file} in the repo")
        if (found := self.sizes[file]) > MAX_FILE_BYTES:
            raise CheckpointError(f"{self.repo}/{file}: {size(found)}, expected {size(MAX_FILE_BYTES)} at most")
        return self.read(file, 0, self.sizes[file])

    def header(self, file: str) -> dict[str, TensorInfo]:
        """Return the tensors of one safetensors file; check its header against the file's size."""
        nbytes = self.sizes[file]
        length = header_length(self.read(file, 0, 8) if nbytes > 8 else b"", nbytes, f"{self.repo}/{file}")
        return parse_header(self.read(file, 8, 8 + length), Path(file), nbytes, f"{self.repo}/{file}")

    def tensors(self, wanted: Callable[[str], bool] | None = None) -> Tensors:
        """Return the tensors of the repo's files.

        Args:
            wanted: skip the files that, by the index, hold no name for which it is true. None: read every header.
        """
        indices = {name: read_index(self.small(name), f"{self.repo}/{name}") for name in index_files(self.sizes)}
        check_complete(self.repo, self.sizes, indices)
        indexed = {name: file for index in indices.values() for name, file in index.items()}
        skipped = set(indexed.values()) - {file for name, file in indexed.items() if not wanted or wanted(name)}
        files = (file for file in weight_files(self.sizes, indices.values()) if file not in skipped)
        return Tensors(item for file in files for item in self.header(file).items())
