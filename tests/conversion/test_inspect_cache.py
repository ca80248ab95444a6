"""`inspect` and the local Hub cache: what is whole, what is not, and which commit counts."""

import shutil
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest

from mlxmtp.checkpoints.hub import download
from mlxmtp.conversion.attach import attach
from mlxmtp.conversion.inspect import inspect, inspect_cache
from mlxmtp.conversion.reports import CheckpointReport, Unreadable
from mlxmtp.errors import CheckpointError
from tests.hub import Hub

Checkpoints = Callable[..., Path]
MODEL, STRIPPED = "maker/original", "community/stripped"


@pytest.fixture
def raw(raw_checkpoint: Checkpoints) -> Path:
    return raw_checkpoint("qwen3_5", shards=3)


@pytest.fixture
def stripped(raw: Path, mlx_conversion: Checkpoints) -> Path:
    return mlx_conversion(raw, bits=4, head="none")


def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def test_a_cached_model_needs_no_hub(hub: Hub, raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = hub.add(MODEL, raw)
    download(MODEL)
    hub.requests.clear()
    offline(monkeypatch)
    report = inspect(MODEL)
    assert (report.where, report.revision, report.support) == ("cache", commit, "speculates")
    assert report.head == inspect(raw).head
    assert not hub.requests


def test_offline_and_not_cached(hub: Hub, raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(MODEL, raw)
    offline(monkeypatch)
    with pytest.raises(CheckpointError, match=r"maker/original: .*offline mode is enabled"):
        inspect(MODEL)
    assert not hub.requests


def test_a_download_that_is_not_done_is_read_on_the_hub(hub: Hub, raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(MODEL, raw)
    huggingface_hub.hf_hub_download(MODEL, "config.json")
    assert inspect(MODEL).where == "hub"
    offline(monkeypatch)
    with pytest.raises(CheckpointError, match=r"no model\*\.safetensors files; it holds config\.json"):
        inspect(MODEL)


def test_a_damaged_file_of_the_cache_is_told(hub: Hub, raw: Path) -> None:
    hub.add(MODEL, raw)
    damage(download(MODEL))
    with pytest.raises(CheckpointError, match="the file is cut short; download it again"):
        inspect(MODEL)


def test_a_head_attached_to_a_commit_is_not_used_with_another(
    hub: Hub, data: Path, raw: Path, stripped: Path, tmp_path: Path
) -> None:
    hub.add(STRIPPED, stripped)
    kept = attach(STRIPPED, str(raw)).file
    report = inspect(STRIPPED)
    assert report.head is not None
    assert (report.where, report.support, report.head.weights.files) == ("cache", "speculates", [str(kept)])
    hub.add(STRIPPED, stripped, commit="cd" * 20)
    download(STRIPPED)
    report = inspect(STRIPPED)
    assert (report.revision, report.support, report.head) == ("cd" * 20, "plain", None)
    assert kept.exists()


def test_a_removed_head_is_as_if_never_attached(hub: Hub, data: Path, raw: Path, stripped: Path) -> None:
    hub.add(STRIPPED, stripped)
    for _ in range(2):
        kept = attach(STRIPPED, str(raw)).file
        assert inspect(STRIPPED).speculates
        kept.unlink()
        assert inspect(STRIPPED).support == "plain"


def test_the_list_of_the_cache(hub: Hub, data: Path, raw: Path, stripped: Path, tmp_path: Path) -> None:
    assert inspect_cache() == []
    bert = Path(shutil.copytree(raw, tmp_path / "bert"))
    (bert / "config.json").write_text('{"hidden_size": 3}')
    gguf = tmp_path / "gguf"
    gguf.mkdir()
    (gguf / "README.md").write_text("text")
    for name, folder in {MODEL: raw, STRIPPED: stripped, "maker/bert": bert, "maker/cut": raw, "a/gguf": gguf}.items():
        hub.add(name, folder)
        download(name)
    damage(next(snapshots("maker--cut").iterdir()))
    attach(STRIPPED, str(raw))
    (snapshots("maker--nothing")).mkdir(parents=True)
    shutil.copytree(snapshots("a--gguf").parent, snapshots("a--gguf").parents[1] / "datasets--a--data", symlinks=True)
    hub.requests.clear()

    found = inspect_cache()
    assert not hub.requests
    assert [report.name for report in found] == [
        "a/gguf", STRIPPED, "maker/bert", "maker/cut", "maker/nothing", MODEL,
    ]  # fmt: skip
    models = {report.name: report for report in found if isinstance(report, CheckpointReport)}
    assert models.keys() == {MODEL, STRIPPED}
    assert all(report == inspect(name) for name, report in models.items())
    assert all(report.speculates for report in models.values())
    errors = {one.name: one.error for one in found if isinstance(one, Unreadable)}
    assert errors["a/gguf"].startswith("no config.json; it holds README.md; expected a model")
    assert errors["maker/bert"].startswith("config.json: no model_type")
    assert errors["maker/cut"].startswith("model-00003-of-00003.safetensors: ")
    assert errors["maker/nothing"] == "nothing of it is downloaded"


def test_the_list_shows_the_commit_that_is_main(hub: Hub, raw: Path, stripped: Path) -> None:
    commit = hub.add(MODEL, raw)
    download(MODEL)
    hub.add(MODEL, stripped, commit="ab" * 20)
    hub.add(MODEL, raw, commit=commit)
    download(MODEL, "ab" * 20)  # the newer files
    assert [report.revision for report in inspect_cache() if isinstance(report, CheckpointReport)] == [commit]


def snapshots(name: str) -> Path:
    return Path(huggingface_hub.constants.HF_HUB_CACHE) / f"models--{name}" / "snapshots"


def damage(snapshot: Path) -> None:
    shard = max(snapshot.glob("*.safetensors"))
    shard.resolve().write_bytes(shard.read_bytes()[:-1])
