"""Every test of the terminal chat has a home of its own: chats, files and the folder it is started in."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that a test is in; chats go below it, whatever the platform's own place for them is."""
    data = tmp_path / "data"
    monkeypatch.setenv("XDG_DATA_HOME", str(data))
    monkeypatch.setattr("platformdirs.user_data_path", lambda name, **_: data / name)
    monkeypatch.setattr("platformdirs.user_config_path", lambda name, **_: tmp_path / "config" / name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    place = tmp_path / "home"
    place.mkdir()
    monkeypatch.chdir(place)
    return place


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    """Where the chats of a test are kept."""
    return tmp_path / "data" / "mlxmtp" / "chats"


@pytest.fixture
def clipboard(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was copied, in order."""
    texts: list[str] = []
    monkeypatch.setattr("mlxmtp_tui.clipboard.copy", lambda text: texts.append(text) or True)
    return texts
