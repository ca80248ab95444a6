"""A small Hugging Face Hub on the loopback interface, for the real client; it fails on demand.

A `.safetensors` or `.gguf` file is stored as with LFS: `resolve` redirects to `/cdn/<sha256>/<owner>/<name>/<file>`.
That address has another host name, since the client looks for a file's metadata behind a redirect that stays on the
same host, and keeps its token there. Xet is not offered: with `hf_xet` installed, a client needs HF_HUB_DISABLE_XET=1
to upload. A gated repo's description is public and its files are not, as on the real Hub.
"""

import base64
import hashlib
import json
import os
import re
import shutil
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from tests import hub_faults
from tests.hub_faults import Fault, Refused, Request, Server, Traffic

__all__ = ["Fault", "Hub", "Request"]

LFS = (".safetensors", ".gguf")
"""Suffixes of what is stored with LFS."""

_NAME, _SHA = "([^/]+/[^/]+)", "([0-9a-f]{64})"
_ROUTES = {
    f"(?:GET|HEAD) /api/models/{_NAME}(?:/revision/([^/]+))?": "info",
    f"GET /api/models/{_NAME}/tree/([^/]+)(?:/(.+))?": "tree",
    f"(?:GET|HEAD) /{_NAME}/resolve/([^/]+)/(.+)": "resolve",
    f"(?:GET|HEAD) /cdn/{_SHA}/{_NAME}/.+": "cdn",
    "POST /api/repos/create": "create",
    "POST /api/validate-yaml": "validate",
    f"POST /api/models/{_NAME}/preupload/([^/]+)": "preupload",
    f"POST /{_NAME}.git/info/lfs/objects/batch": "batch",
    f"PUT /upload/{_SHA}": "upload",
    f"POST /api/models/{_NAME}/commit/([^/]+)": "commit",
}


@dataclass
class Repo:
    """Folders by commit; the last one is `main`."""

    commits: dict[str, Path] = field(default_factory=dict)
    gated: bool = False

    @property
    def main(self) -> str:
        return list(self.commits)[-1]


@dataclass(frozen=True)
class File:
    """A file as the Hub describes it: `oid` is its git blob's, `sha256` is there for what LFS stores."""

    name: str
    path: Path
    size: int
    oid: str
    sha256: str | None
    pointer_size: int

    @property
    def lfs(self) -> dict[str, Any]:
        """For the API, which names the hash in two ways."""
        if self.sha256 is None:
            return {}
        return {"lfs": {"oid": self.sha256, "sha256": self.sha256, "size": self.size, "pointerSize": self.pointer_size}}


class Hub(Traffic):
    """Serves folders as repos while it is entered."""

    token = "hf_the_right_one"  # reads gated repos and writes all; any other one reads the rest

    def __init__(self) -> None:
        super().__init__()
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, Path] = {}  # what LFS stores, by sha256
        self._described: dict[tuple[Path, str, int, int], File] = {}

    def __enter__(self) -> "Hub":
        self._server = Server(self, _Handler)
        self.url, self.cdn_url = (f"http://{host}:{self._server.server_port}" for host in ("127.0.0.1", "localhost"))
        self._temporary = tempfile.TemporaryDirectory(prefix="hub-")
        self.root = Path(self._temporary.name)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._temporary.cleanup()

    def add(self, name: str, folder: Path, *, gated: bool = False, commit: str | None = None) -> str:
        """Publish a folder; returns the commit (40 hex digits, by default from the name).

        The folder is read anew at each request. Another commit of the same repo becomes `main`; older ones stay.
        """
        commit = commit or hashlib.sha1(name.encode()).hexdigest()
        repo = self.repos.setdefault(name, Repo())
        repo.gated = gated
        repo.commits.pop(commit, None)
        repo.commits[commit] = folder
        return commit

    def uploaded(self, name: str) -> Path:
        """The folder of a repo's last commit."""
        repo = self.repos[name]
        return repo.commits[repo.main]

    def sent(self, name: str) -> int:
        """How many bytes of a repo's files went out, the CDN's included."""
        return sum(request.sent_bytes for request in list(self.requests) if request.repo == name)

    def environment(self, home: Path) -> dict[str, str]:
        """All variables for a new process whose client shall use this Hub and keep its cache in `home`."""
        others = ("HF_", "HUGGING", "TRANSFORMERS_OFFLINE")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(others) and not k.lower().endswith("_proxy")}
        switches = dict.fromkeys(("HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_TELEMETRY"), "1")
        return kept | switches | {"HF_ENDPOINT": self.url, "HF_HOME": str(home)}

    def find(self, name: str, revision: str | None) -> tuple[Repo, str, dict[str, File]]:
        """A repo, the commit that a revision means, and its files by name."""
        if name not in self.repos:
            raise Refused(401, "RepoNotFound", "Repository not found")  # 404 with a token, which makes no difference
        repo = self.repos[name]
        commit = repo.main if revision in (None, "main") else str(revision)
        if commit not in repo.commits:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        folder = repo.commits[commit]
        files = (self._describe(path, folder) for path in sorted(folder.rglob("*")) if path.is_file())
        return repo, commit, {file.name: file for file in files}

    def _describe(self, path: Path, folder: Path) -> File:
        name, state = path.relative_to(folder).as_posix(), path.stat()
        key = (path, name, state.st_mtime_ns, state.st_size)
        if key not in self._described:
            data, sha = path.read_bytes(), None
            if path.suffix in LFS:
                sha = hashlib.sha256(data).hexdigest()
                self.blobs[sha] = path
                data = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha}\nsize {len(data)}\n".encode()
            oid = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            self._described[key] = File(name, path, state.st_size, oid, sha, len(data))
        return self._described[key]


class _Handler(hub_faults.Handler):
    """The routes; each gets the groups of its pattern."""

    def respond(self, line: str) -> None:
        self.hub: Hub = self.server.traffic  # type: ignore[assignment]
        for pattern, route in _ROUTES.items():
            if match := re.fullmatch(pattern, line):
                if line.startswith("POST") and self.record.token != self.hub.token:
                    raise Refused(401, message="Invalid username or password.")
                getattr(self, route)(*(group and unquote(group) for group in match.groups()))
                return
        raise Refused(404, message="Sorry, we can't find the page you are looking for.")

    def info(self, name: str, revision: str | None) -> None:
        repo, commit, files = self.hub.find(name, revision)
        siblings: list[dict[str, Any]] = [{"rfilename": file} for file in files]
        if "blobs" in parse_qs(urlsplit(self.path).query):
            siblings = [{"rfilename": f.name, "size": f.size, "blobId": f.oid} | f.lfs for f in files.values()]
        gated = "manual" if repo.gated else False
        self.answer({"id": name, "modelId": name, "sha": commit, "gated": gated, "siblings": siblings, "tags": []})

    def tree(self, name: str, revision: str, under: str | None) -> None:
        _, _, files = self.hub.find(name, revision)
        entries = {
            f.name: {"type": "file", "path": f.name, "size": f.size, "oid": f.oid} | f.lfs for f in files.values()
        }
        for folder in {str(parent) for file in files for parent in PurePosixPath(file).parents[:-1]}:
            entries[folder] = {"type": "directory", "path": folder, "size": 0, "oid": "0" * 40}
        deep = parse_qs(urlsplit(self.path).query).get("recursive", ["false"])[0].lower() == "true"
        top = PurePosixPath(under or ".")
        parents = {path: list(PurePosixPath(path).parents) for path in entries}
        self.answer([entries[p] for p in sorted(entries) if top in (parents[p] if deep else parents[p][:1])])

    def resolve(self, name: str, revision: str, path: str) -> None:
        repo, commit, files = self.hub.find(name, revision)
        if repo.gated and self.record.token != self.hub.token:
            raise Refused(403 if self.record.token else 401, "GatedRepo", f"Access to model {name} is restricted.")
        headers = {"X-Repo-Commit": commit}
        if path not in files:
            raise Refused(404, "EntryNotFound", "Entry not found", **headers)
        file = files[path]
        if file.sha256 is None:
            self.send_file(file.path, name, headers | {"ETag": f'"{file.oid}"'})
            return
        location = f"{self.hub.cdn_url}/cdn/{file.sha256}/{quote(name)}/{quote(path)}"
        linked = {"X-Linked-Size": str(file.size), "X-Linked-Etag": f'"{file.sha256}"', "Location": location}
        self.answer(f"Found. Redirecting to {location}", 302, headers | linked)

    def cdn(self, sha: str, name: str) -> None:
        if self.record.token:
            raise Refused(400, message="Only one auth mechanism allowed")  # as S3: the address is signed
        self.send_file(self.hub.blobs[sha], name, {"ETag": f'"{sha}"'})

    def create(self) -> None:
        asked = json.loads(self.body)
        name = f"{asked.get('organization') or 'user'}/{asked['name']}"
        created = {"url": f"{self.hub.url}/{name}", "name": name, "id": name}
        if name in self.hub.repos:
            self.answer(created | {"error": "You already created this model repo"}, 409)
        else:
            self.hub.add(name, Path(tempfile.mkdtemp(dir=self.hub.root)))
            self.answer(created)

    def validate(self) -> None:
        """The metadata of a README.md, which the client wants checked first."""
        self.answer({"errors": [], "warnings": []})

    def preupload(self, name: str, revision: str) -> None:
        _, _, there = self.hub.find(name, revision)
        modes = []
        for path in (file["path"] for file in json.loads(self.body)["files"]):
            mode = "lfs" if path.endswith(LFS) else "regular"
            oid = (there[path].sha256 or there[path].oid) if path in there else None
            modes.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.answer({"files": modes})

    def batch(self, name: str) -> None:
        objects = [{"oid": blob["oid"], "size": blob["size"]} for blob in json.loads(self.body)["objects"]]
        for blob in objects:
            if blob["oid"] not in self.hub.blobs:
                blob["actions"] = {"upload": {"href": f"{self.hub.cdn_url}/upload/{blob['oid']}"}}
        self.answer({"transfer": "basic", "objects": objects})

    def upload(self, sha: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != sha:
            raise Refused(400, message="the content is another one than announced")
        self.hub.blobs[sha] = self.hub.root / sha
        self.hub.blobs[sha].write_bytes(self.body)
        self.answer({})

    def commit(self, name: str, revision: str) -> None:
        repo, parent, _ = self.hub.find(name, revision)
        folder = Path(tempfile.mkdtemp(dir=self.hub.root))
        shutil.copytree(repo.commits[parent], folder, dirs_exist_ok=True)
        for step in map(json.loads, self.body.splitlines()):
            path, value = folder / step["value"].get("path", ""), step["value"]
            path.parent.mkdir(parents=True, exist_ok=True)
            match step["key"]:
                case "file":
                    path.write_bytes(base64.b64decode(value["content"]))
                case "lfsFile":
                    shutil.copy(self.hub.blobs[value["oid"]], path)
                case "deletedFile":
                    path.unlink()
                case "deletedFolder":
                    shutil.rmtree(path)
        oid = self.hub.add(name, folder, gated=repo.gated, commit=hashlib.sha1(str(folder).encode()).hexdigest())
        self.answer({"success": True, "commitOid": oid, "commitUrl": f"{self.hub.url}/{name}/commit/{oid}"})
