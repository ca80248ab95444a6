"""The picker brings a model from a Hub, by way of the real process and the real client, and the chat speaks with it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mlxmtp_tui.app import ChatApp
from mlxmtp_tui.options import ChatOptions
from mlxmtp_tui.recommended import RecommendedModel
from mlxmtp_tui.screens import picker
from mlxmtp_tui.widgets.prompt import PromptInput
from textual.widgets import OptionList

from mlxmtp.engine.request import GenerationOptions
from mlxmtp.worker.process import WorkerProcess
from tests.hub import Hub
from tests.tui.harness import asynchronous, until

pytestmark = pytest.mark.process

REPO = Path(__file__).parents[2]
MODEL = "maker/original"


@pytest.fixture
def offered(raw_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub with one model, which is all that the picker recommends."""
    monkeypatch.setattr(picker, "RECOMMENDED", (RecommendedModel(MODEL, 0.1, None, "to try"),))
    with Hub() as hub:
        hub.add(MODEL, raw_checkpoint("qwen3_5", shards=3))
        for name, value in hub.environment(tmp_path / "hf").items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("PYTHONPATH", str(REPO))
        yield hub


@pytest.mark.exhaustive  # tests/worker/test_hub.py downloads by default, test_picker.py asks for it
@asynchronous
async def test_a_model_is_downloaded_loaded_and_asked(offered: Hub, tmp_path: Path):
    app = ChatApp(WorkerProcess.start, ChatOptions(choose=True, settings=GenerationOptions(max_tokens=16, depth=2)))
    async with app.run_test(size=(130, 40)) as pilot:
        await until(lambda: isinstance(app.screen, picker.ModelPicker), "the picker")
        await until(lambda: app.screen._models, "the list")
        models = app.screen.query_one(OptionList)
        models.highlighted = models.get_option_index(f"get {MODEL}")
        await pilot.press("enter")
        await until(lambda: app.chat.state.status == "ready", "the model")
        assert app.chat.loaded.name == MODEL
        assert app.chat.loaded.head == "qwen-mtp"
        app.query_one(PromptInput).fill("Hello")
        await pilot.press("enter")
        await until(lambda: app.chat.conversation.turns and app.chat.conversation.turns[0].answer, "an answer")
        assert app.chat.conversation.turns[0].answer.stats.drafted > 0
    assert list((tmp_path / "hf").rglob("*.safetensors"))
    assert any("safetensors" in request.path for request in offered.requests)


@pytest.mark.exhaustive
@asynchronous
async def test_a_typed_repo_is_downloaded_before_it_is_loaded(offered: Hub):
    app = ChatApp(WorkerProcess.start, ChatOptions(model=MODEL))
    async with app.run_test(size=(130, 40)):
        await until(lambda: app.chat.state.status == "ready", "the model")
        assert app.chat.loaded.head == "qwen-mtp"
    assert any("safetensors" in request.path for request in offered.requests)
