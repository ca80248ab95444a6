"""Real clients with the real server and a scripted engine."""

from collections.abc import Iterator
from pathlib import Path

import platformdirs
import pytest

from tests.server.clients import scripted as script
from tests.server.clients.scripted import Scripted
from tests.server.process import ServerProcess


@pytest.fixture(scope="module")
def installed() -> Path:
    """Where programs are installed, once a machine: hundreds of MB, the version in the folder's name."""
    return platformdirs.user_cache_path("mlxmtp-tests") / "clients"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The home folder of a client."""
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The working folder of a client."""
    (tmp_path / "project").mkdir()
    return tmp_path / "project"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Scripted:
    model = Scripted(tmp_path_factory.mktemp("model"))
    model.make()
    return model


@pytest.fixture(scope="module")
def server(program: str, model: Scripted, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """The server for a module's `program`, which may be missing. Its queue has no room."""
    program = (script.__file__, "serve", str(model.folder))
    with ServerProcess(tmp_path_factory.mktemp("server"), program=program) as started:
        yield started


@pytest.fixture
def scripted(server: ServerProcess, model: Scripted) -> Scripted:
    """The script of the engine of `server`."""
    return model
