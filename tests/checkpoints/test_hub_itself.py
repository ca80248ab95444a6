"""The Hub of the tests, as the real client sees it."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants, errors, get_session, hf_hub_download, model_info, snapshot_download

from tests.comparing import contents
from tests.hub import Fault, Hub

NAME = "owner/model"
DATA = bytes(i % 251 for i in range(100_000))
FILES = {"config.json": b"{}", "more/notes.txt": b"some text", "model.safetensors": DATA}
CDN = r"GET /cdn/.*/model\.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "source" / "more").mkdir(parents=True)
    for name, data in FILES.items():
        (tmp_path / "source" / name).write_bytes(data)
    return tmp_path / "source"


def test_descriptions_and_what_is_not_there(hub: Hub, folder: Path) -> None:
    commit = hub.add(NAME, folder, commit="ab" * 20)
    info = model_info(NAME, files_metadata=True)
    assert info.sha == commit == "ab" * 20
    assert {file.rfilename: file.size for file in info.siblings or []} == {n: len(d) for n, d in FILES.items()}
    assert [file.path for file in HfApi().list_repo_tree(NAME)] == ["config.json", "model.safetensors", "more"]
    assert [file.path for file in HfApi().list_repo_tree(NAME, "more", revision=commit)] == ["more/notes.txt"]
    with pytest.raises(errors.RepositoryNotFoundError):
        model_info("owner/nothing")
    with pytest.raises(errors.RevisionNotFoundError):
        model_info(NAME, revision="nothing")
    with pytest.raises(errors.RemoteEntryNotFoundError):
        hf_hub_download(NAME, "nothing.json")


def test_a_download_goes_on_after_a_cut(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # the client drops an unfinished chunk
    hub.add(NAME, folder)
    hub.faults.append(Fault(CDN, "cut", value=70_000))
    assert contents(snapshot_download(NAME)) == FILES
    cdn = [(r.range, r.status, r.sent_bytes) for r in hub.requests if r.path.startswith("/cdn/")]
    assert cdn == [(None, 200, 70_000), ("bytes=70000-", 206, 30_000)]
    assert hub.sent(NAME) == sum(map(len, FILES.values()))


def test_gated(hub: Hub, folder: Path) -> None:
    hub.add(NAME, folder, gated=True)
    for token in (None, "hf_another"):
        with pytest.raises(errors.GatedRepoError):
            snapshot_download(NAME, token=token)
    assert hub.sent(NAME) == 0
    assert contents(snapshot_download(NAME, token=hub.token)) == FILES
    assert {r.token for r in hub.requests if r.path.startswith("/cdn/")} == {None}


@pytest.mark.parametrize(("asked", "start", "end"), [("5-9", 5, 10), ("99990-", 99990, None), ("-7", -7, None)])
def test_ranges(hub: Hub, folder: Path, asked: str, start: int, end: int | None) -> None:
    hub.add(NAME, folder)
    url, headers = f"{hub.url}/{NAME}/resolve/main/model.safetensors", {"Range": f"bytes={asked}"}
    answer = get_session().get(url, headers=headers)
    assert (answer.status_code, answer.content) == (206, DATA[start:end])
    first, last, _ = slice(start, end).indices(len(DATA))
    assert answer.headers["Content-Range"] == f"bytes {first}-{last - 1}/100000"
    hub.faults.append(Fault(CDN, "ignore_range"))
    answer = get_session().get(url, headers=headers)
    assert (answer.status_code, answer.content) == (200, DATA)
    assert get_session().get(url, headers={"Range": "bytes=100000-"}).status_code == 416
    assert hub.sent(NAME) == last - first + len(DATA)


def test_answers_on_demand(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    hub.add(NAME, folder)
    hub.faults += [Fault(CDN, "status", times=2, value=429, retry_after=3), Fault(CDN, "status", value=503)]
    with pytest.raises(errors.HfHubHTTPError, match="503"):
        hf_hub_download(NAME, "model.safetensors")
    assert waits == [4, 4]
    hub.faults += [Fault(CDN, "length", value=1000)]
    with pytest.raises(OSError, match="Consistency check failed"):
        hf_hub_download(NAME, "model.safetensors")
    hub.faults += [Fault(CDN, "corrupt", value=70_000)]
    got = Path(hf_hub_download(NAME, "model.safetensors")).read_bytes()
    assert [i for i, (a, b) in enumerate(zip(got, DATA, strict=True)) if a != b] == [70_000]


def test_a_client_that_is_killed(hub: Hub, folder: Path, tmp_path: Path) -> None:
    hub.add(NAME, folder)
    hub.faults.append(Fault(CDN, "slow", value=60))
    code = f"from huggingface_hub import snapshot_download; snapshot_download({NAME!r})"
    with subprocess.Popen([sys.executable, "-c", code], env=hub.environment(tmp_path / "hf")) as process:
        while process.poll() is None and hub.sent(NAME) < len(DATA) // 2:
            time.sleep(0.02)
        process.kill()
    assert [r.sent_bytes for r in hub.requests if r.path.startswith("/cdn/")] == [len(DATA) // 2]
    assert contents(snapshot_download(NAME)) == FILES


def test_uploads(hub: Hub, folder: Path) -> None:
    with pytest.raises(errors.HfHubHTTPError, match="401"):
        HfApi().create_repo(NAME)
    api = HfApi(token=hub.token)
    api.create_repo(NAME)
    assert api.create_repo(NAME, exist_ok=True).repo_id == NAME
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    first = api.upload_folder(repo_id=NAME, folder_path=folder).oid
    assert contents(hub.uploaded(NAME)) == contents(folder)
    assert api.upload_folder(repo_id=NAME, folder_path=folder).oid == first, "nothing new"
    (folder / "more" / "notes.txt").unlink()
    second = api.upload_folder(repo_id=NAME, folder_path=folder, delete_patterns="more/*").oid
    assert [r.method for r in hub.requests].count("PUT") == 1
    assert "more/notes.txt" in contents(snapshot_download(NAME, revision=first))
    assert contents(snapshot_download(NAME, revision=second)) == contents(folder)
