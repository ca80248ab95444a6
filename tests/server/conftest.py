"""No test may leave a traceback on standard error. Fixtures: one server process with a small model, and its engine."""

from collections.abc import Iterator

import pytest

from mlxmtp import Engine, load
from tests.server.process import ServerProcess
from tests.worker.driving import SMALL_MODEL


@pytest.fixture(autouse=True)
def no_traceback(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    yield
    assert "Traceback" not in capfd.readouterr().err


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """`mlxmtp serve`, greedy, for all tests of the session."""
    options = ("--model", str(SMALL_MODEL), "--temp", "0")
    with ServerProcess(tmp_path_factory.mktemp("home"), *options) as process:
        yield process
        assert "Traceback" not in process.log


@pytest.fixture(scope="session")
def address(server: ServerProcess) -> str:
    return server.url


@pytest.fixture(scope="session")
def engine() -> Engine:
    """The model of `server` in this process. The server must give the same answers."""
    return load(SMALL_MODEL)
