"""Settings that are kept, the line that shows them, and completion of arguments."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mlxmtp_tui import arguments, config
from mlxmtp_tui.options import ChatOptions

from mlxmtp.worker.messages import Generate
from tests.tui.harness import answering, asynchronous, running_app

HOSTILE = {
    "no-json": "{",
    "a-list": "[]",
    "a-text": '{"temperature": "hot"}',
    "out-of-range": '{"temperature": -1}',
    "not-a-number": '{"temperature": NaN}',
    "a-bool": '{"temperature": true}',
    "deep": "[" * 100_000,
    "large": " " * (1 << 17),
}


def test_a_file_that_cannot_be_used_is_one_line_and_defaults() -> None:
    assert config.load() == ({}, "")
    config.file().parent.mkdir(parents=True)
    for name, content in HOSTILE.items():
        config.file().write_text(content)
        kept, warning = config.load()
        assert kept == {}, name
        assert warning.startswith(f"{config.file()}: not used ("), name
        assert "\n" not in warning, name
    config.file().write_text('{"temperature": 0.5, "thinking": false, "of another version": 1}')
    assert config.load() == ({"temperature": 0.5, "thinking": False}, "")


@asynchronous
async def test_settings_are_kept_when_asked_and_shown() -> None:
    async with running_app(size=(120, 30)) as ui:
        await ui.enter("/temp 0.3")
        await ui.sees("temp 0.3 (yours)")
        assert not config.file().exists(), "nothing is kept unasked"
        await ui.enter("/keep")
        assert json.loads(config.file().read_text()) == {"temperature": 0.3}
        assert "temperature 0.3" in ui.notices[-1][1]
    async with running_app(options=ChatOptions(sampling=config.load()[0])) as ui:
        ui.engine.on(Generate, answering("yes"))
        await ui.enter("go")
        await ui.sees("yes")
        assert ui.engine.sent(Generate)[0].settings.temperature == 0.3
        await ui.enter("/keep off")
        assert config.load() == ({}, "")


@asynchronous
async def test_what_is_wrong_with_the_file_is_told() -> None:
    async with running_app(options=ChatOptions(notice="chat.json: not used")) as ui:
        await ui.until(lambda: "chat.json: not used" in ui.errors)


@asynchronous
async def test_arguments_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("models--maker--one-4bit", "models--x", "datasets--maker--data"):
        (tmp_path / "cache" / name).mkdir(parents=True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    assert arguments.completions("model", "4b") == [("maker/one-4bit", "")]
    assert arguments.argument("/bench x") is None
    async with running_app() as ui:
        await ui.write("/model ma")
        await ui.press("tab")
        assert ui.prompt.text == "/model maker/one-4bit "
        await ui.press("ctrl+c")
        await ui.write("/think o")
        await ui.press("down", "enter")
        assert ui.prompt.text == "/think off ", "a choice made with the arrows is taken"
        await ui.press("ctrl+c")
        await ui.enter("/think on")
        assert ui.chat.settings.thinking is True
        await ui.enter("/temp ")
        assert ui.prompt.text == "", "enter alone sends, and completes nothing"
