"""No test may leave a traceback on standard error. Fixtures: one server process with the demo model, and its engine."""

from collections.abc import Iterator

import pytest

from mlxmtp import Engine, load
from tests.server.process import ServeProcess


@pytest.fixture(autouse=True)
def no_traceback(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    yield
    assert "Traceback" not in capfd.readouterr().err


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeProcess]:
    """`mlxmtp serve` with the demo model, for all tests of the session."""
    with ServeProcess(tmp_path_factory.mktemp("home")) as process:
        yield process
        assert "Traceback" not in process.stderr


@pytest.fixture(scope="session")
def address(server: ServeProcess) -> str:
    return server.address


@pytest.fixture(scope="session")
def engine() -> Engine:
    """The demo model in this process. The server must give the same answers."""
    return load()
