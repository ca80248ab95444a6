"""Workers whose caches lie in a folder of the test's own."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlxmtp import Engine, load
from mlxmtp.worker.messages import Load, Loaded
from tests.checkpoints.conftest import hub
from tests.conftest import REPO
from tests.worker.driving import SMALL_MODEL, Driven, share_measurements

__all__ = ["hub"]


def at_home(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """For processes to come: a home in `folder`, no network, and this repository's code."""
    share_measurements(folder / "data")
    homes = {"HOME": folder, "XDG_DATA_HOME": folder / "data", "HF_HOME": folder / "hf"}
    for name, value in homes.items():
        patch.setenv(name, str(value))
    patch.setenv("HF_HUB_OFFLINE", "1")
    code_of_this_repository(patch)


def code_of_this_repository(patch: pytest.MonkeyPatch) -> None:
    """Wherever a process starts: what pytest was told may be relative to the folder that it runs in."""
    others = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    patch.setenv("PYTHONPATH", os.pathsep.join([str(REPO), *map(os.path.abspath, others)]))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where processes that the test starts have their caches."""
    at_home(monkeypatch, tmp_path)
    return tmp_path


@pytest.fixture
def data(hub: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """mlxmtp's own data folder, next to the Hub's."""
    for name in ("HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "data"))
    code_of_this_repository(monkeypatch)
    return tmp_path / "data"


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driven]:
    """A worker process for a whole module."""
    with pytest.MonkeyPatch.context() as patch:
        at_home(patch, tmp_path_factory.mktemp("home"))
        driven = Driven()
    with driven:
        yield driven


@pytest.fixture(scope="module")
def loaded(started: Driven) -> Loaded:
    """What the worker of the module says once a small model is loaded."""
    event = started.answer(Load, str(SMALL_MODEL))[-1]
    assert isinstance(event, Loaded), event
    return event


@pytest.fixture
def worker(started: Driven, loaded: Loaded) -> Driven:
    """The worker of the module, with a small model."""
    return started


@pytest.fixture(scope="module")
def engine() -> Engine:
    """The same model in this process: what it says is what the worker has to say."""
    return load(SMALL_MODEL)
