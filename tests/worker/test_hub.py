"""Models of the Hub: found, downloaded with their heads, loaded, and all that without a connection."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import constants, hf_api

from mlxmtp.checkpoints.hub import FILES, download
from mlxmtp.conversion.inspect import inspect
from mlxmtp.engine.request import GenerationOptions
from mlxmtp.machine import usable_memory
from mlxmtp.worker.messages import (
    CachedModel,
    CheckProgress,
    Died,
    Download,
    Downloaded,
    Downloading,
    Event,
    Failed,
    Finished,
    Generate,
    ListModels,
    Load,
    Loaded,
    Models,
    Stopped,
)
from tests.comparing import contents
from tests.hub import Fault, Hub
from tests.worker.driving import PATIENCE_S, Driven, serve, wait_until

MODEL, STRIPPED, NO_MODEL = "maker/original", "community/stripped", "maker/words"
LAST_SHARD = "model-00003-of-00003.safetensors"

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("data"), pytest.mark.exhaustive]


@pytest.fixture
def original(raw_checkpoint: Callable[..., Path]) -> Path:
    return raw_checkpoint("qwen3_5", shards=3)


@pytest.fixture
def models(
    hub: Hub, original: Path, mlx_conversion: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Hub:
    """A model with its head, a conversion that lost it, and a repo without any model."""
    hub.add(MODEL, original)
    hub.add(STRIPPED, mlx_conversion(original, bits=4, head="none"))
    words = tmp_path / "words"
    words.mkdir()
    (words / "README.md").write_text("nothing but words")
    hub.add(NO_MODEL, words)
    return hub


@pytest.fixture
def disconnect(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Nothing answers where the Hub was."""

    def disconnect() -> None:
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        monkeypatch.setattr(hf_api.api, "endpoint", "http://127.0.0.1:9")

    return disconnect


def size(folder: Path) -> int:
    """Bytes of what a model needs."""
    return sum(file.stat().st_size for pattern in FILES for file in folder.glob(pattern))


def assert_comes_in_whole(events: list[Event], repo: str, total: int) -> None:
    """The bytes of a repo are counted up to the last."""
    fetching = [event for event in events if isinstance(event, Downloading) and event.repo == repo]
    assert {event.total for event in fetching} == {total}
    assert all(0 <= event.done <= total for event in fetching)
    assert fetching[-1].done == total


def test_an_empty_cache_holds_no_models(models: Hub) -> None:
    assert serve(ListModels(1)) == [Models(1, [], usable_memory())]
    assert not models.requests


def test_models_of_the_cache_are_listed(models: Hub) -> None:
    for repo in (MODEL, STRIPPED):
        download(repo)
    broken = download(NO_MODEL)
    models.requests.clear()
    ((found, memory),) = [(event.models, event.memory_limit) for event in serve(ListModels(1))]
    assert memory == usable_memory()
    assert not models.requests, "the cache is looked at, and nothing else"
    whole, stripped = inspect(MODEL), inspect(STRIPPED)
    assert whole.head
    assert found[0] == CachedModel(STRIPPED, stripped.trunk.nbytes, None, "plain", stripped.because)
    nbytes = whole.trunk.nbytes + whole.head.weights.nbytes
    assert found[1] == CachedModel(MODEL, nbytes, "qwen-mtp", "speculates", whole.because)
    assert (found[2].name, found[2].nbytes, found[2].head, found[2].support) == (NO_MODEL, 0, None, "refused")
    assert "config.json" in found[2].reason
    assert str(broken) not in found[2].reason


def test_a_download_is_counted_to_its_end(models: Hub, original: Path) -> None:
    *events, last = serve(Download(1, MODEL))
    assert last == Downloaded(1, MODEL, None)
    assert {type(event) for event in events} == {Downloading}
    assert_comes_in_whole(events, MODEL, size(original))
    assert models.sent(MODEL) == size(original)
    assert serve(Download(2, MODEL))[-1] == Downloaded(2, MODEL, None), "it is here already"
    assert models.sent(MODEL) == size(original)


def test_a_head_is_attached(models: Hub) -> None:
    events = serve(Download(1, STRIPPED, MODEL), Load(2, STRIPPED))
    assert [event for event in events if isinstance(event, Downloaded)] == [Downloaded(1, STRIPPED, None)]
    (head_bytes,) = {event.total for event in events if isinstance(event, Downloading) and event.repo == MODEL}
    assert 0 < head_bytes < size(models.repos[MODEL].commits[models.repos[MODEL].main]) / 2
    assert_comes_in_whole(events, MODEL, head_bytes)
    loaded = events[-1]
    assert isinstance(loaded, Loaded)
    assert (loaded.name, loaded.head, loaded.plain_because) == (STRIPPED, "qwen-mtp", None)


def test_a_head_that_is_there_is_no_reason_to_warn(models: Hub) -> None:
    """Downloading again what is here is nothing wrong, and a repo with a head of its own needs no other."""
    serve(Download(1, STRIPPED, MODEL))
    sent = models.sent(MODEL)
    assert serve(Download(2, STRIPPED, MODEL))[-1] == Downloaded(2, STRIPPED, None)
    assert models.sent(MODEL) == sent
    assert serve(Download(3, MODEL, STRIPPED))[-1] == Downloaded(3, MODEL, None)


def test_without_its_head_the_model_is_here_all_the_same(models: Hub) -> None:
    fetched, loaded = serve(Download(1, STRIPPED, "maker/nobody"), Load(2, STRIPPED))[-2:]
    assert isinstance(fetched, Downloaded)
    assert fetched.warning
    assert "its head is not" in fetched.warning
    assert "maker/nobody" in fetched.warning
    assert isinstance(loaded, Loaded)
    assert loaded.head is None


@pytest.mark.parametrize("repo", ["maker/nobody", NO_MODEL, "no repo", "./folder"])
def test_what_cannot_be_downloaded_is_refused(models: Hub, repo: str) -> None:
    first, *rest = serve(Download(1, repo), ListModels(2))
    assert isinstance(first, Failed)
    assert (first.kind, repo in first.message) == ("refused", True)
    assert len(rest) == 1
    assert isinstance(rest[0], Models)


def test_a_model_too_large_for_the_memory_is_fetched_with_a_warning(
    models: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlxmtp.machine.memory_bytes", lambda: 100_000)
    warning = serve(Download(1, MODEL))[-1].warning
    assert "will not run in this machine's 100.0 kB of memory" in warning


def test_a_download_that_waits_can_be_stopped(models: Hub) -> None:
    assert serve(Download(1, MODEL), stops=lambda _: True) == [Stopped(1)]
    assert not models.requests


def without_checks(events: list[Event]) -> list[Event]:
    """The events without the progress of the exactness probe, which runs once for a model and a machine."""
    return [event for event in events if not isinstance(event, CheckProgress)]


def test_a_model_that_is_not_here_is_fetched_before_it_is_loaded(models: Hub, original: Path) -> None:
    *events, loaded = without_checks(serve(Load(1, MODEL)))
    assert {type(event) for event in events} == {Downloading}
    assert_comes_in_whole(events, MODEL, size(original))
    assert isinstance(loaded, Loaded)
    assert (loaded.name, loaded.head) == (MODEL, "qwen-mtp")
    assert [type(event) for event in without_checks(serve(Load(2, MODEL)))] == [Loaded], "it is here now"
    assert models.sent(MODEL) == size(original)


@pytest.mark.parametrize("way", ["unplugged", "offline"])
def test_without_a_connection_what_is_here_is_loaded(
    models: Hub, disconnect: Callable[[], None], monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    download(MODEL)
    disconnect() if way == "unplugged" else monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    (loaded,) = without_checks(serve(Load(1, MODEL)))
    assert isinstance(loaded, Loaded)
    assert loaded.head == "qwen-mtp"
    *_, generated = serve(Load(2, STRIPPED), Load(3, MODEL), Generate(4, [{"role": "user", "content": "a"}], SHORT))
    assert isinstance(generated, Finished)


SHORT = GenerationOptions(max_tokens=2)


def test_without_a_connection_the_rest_is_refused(models: Hub, disconnect: Callable[[], None]) -> None:
    disconnect()
    events = serve(Load(1, STRIPPED), Download(2, STRIPPED), Generate(3, [], SHORT), ListModels(4))
    assert [type(event) for event in events] == [Failed, Failed, Failed, Models]
    assert all(STRIPPED in event.message for event in events[:2])
    assert {event.kind for event in events[:3]} == {"refused"}


def test_a_download_that_breaks_off_is_told_and_goes_on_later(models: Hub, original: Path) -> None:
    models.faults.append(Fault(rf"GET /cdn/.*{LAST_SHARD}", "status", 99, 404))
    events = serve(Download(1, MODEL), ListModels(2))
    assert [(event.kind, MODEL in event.message) for event in events if isinstance(event, Failed)] == [
        ("refused", True)
    ]
    models.faults.clear()
    *events, last = serve(Download(3, MODEL))
    assert last == Downloaded(3, MODEL, None)
    assert_comes_in_whole(events, MODEL, (original / LAST_SHARD).stat().st_size)


def test_a_download_is_ended_by_a_kill_and_done_by_another_worker(models: Hub, original: Path, tmp_path: Path) -> None:
    shard = (original / LAST_SHARD).stat().st_size
    models.faults.append(Fault(rf"GET /cdn/.*{LAST_SHARD}", "slow", value=PATIENCE_S))
    snapshot = tmp_path / "hf" / "hub" / f"models--{MODEL.replace('/', '--')}" / "snapshots" / models.repos[MODEL].main
    others = {file.name for file in original.iterdir()} - {LAST_SHARD}

    def halfway() -> bool:
        here = {file.name for file in snapshot.glob("*")}
        return here == others and models.sent(MODEL) > size(original) - shard

    with Driven() as worker:
        worker.send(Download, MODEL)
        assert worker.until(Downloading).total == size(original)
        assert wait_until(halfway, PATIENCE_S)
        worker.process.kill()
        died = worker.rest(1)[-1]
        assert isinstance(died, Died)
        assert died.code == -signal.SIGKILL
    sent = models.sent(MODEL)
    *events, last = serve(Download(2, MODEL))
    assert last == Downloaded(2, MODEL, None)
    assert_comes_in_whole(events, MODEL, shard)
    assert models.sent(MODEL) - sent <= shard, "whole files are not fetched again"
    assert contents(download(MODEL)) == contents(original)
    assert [one.name for one in serve(ListModels(3))[0].models] == [MODEL]
