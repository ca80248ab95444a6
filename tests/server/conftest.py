"""Whatever a test does to a server in this process: no fault of its own comes out of it."""

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def no_traceback(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    yield
    assert "Traceback" not in capfd.readouterr().err
