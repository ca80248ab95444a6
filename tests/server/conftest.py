"""No fault of a server's own comes out of any test; one server with the demo model for those that want a real one."""

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
    """`mlxmtp serve` with the demo model; it goes on whatever a test asks of it."""
    with ServeProcess(tmp_path_factory.mktemp("home")) as process:
        yield process
        assert "Traceback" not in process.said


@pytest.fixture(scope="session")
def address(server: ServeProcess) -> str:
    return server.address


@pytest.fixture(scope="session")
def engine() -> Engine:
    """The bundled model in this process: what it says is what a server has to say."""
    return load()
