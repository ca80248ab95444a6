"""Choosing a model, with a download on the way, and choosing a chat."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from mlxmtp_tui.options import ChatOptions
from mlxmtp_tui.recommended import RECOMMENDED
from mlxmtp_tui.screens.chats import ChatPicker
from mlxmtp_tui.screens.help import HelpScreen
from mlxmtp_tui.screens.picker import ModelPicker
from mlxmtp_tui.sessions import Session
from textual.widgets import Input, OptionList, ProgressBar

from mlxmtp.worker.messages import (
    CachedModel,
    Download,
    Downloaded,
    Downloading,
    Failed,
    Generate,
    ListModels,
    Load,
    Models,
)
from tests.tui.harness import AppHarness, Engines, ScriptedEngine, answering, asynchronous, running_app, saved_chat

FOUND = [
    CachedModel("owner/with-head-4bit", 5_200_000_000, "qwen-mtp", "speculates", ""),
    CachedModel("owner/plain-4bit", 2_100_000_000, None, "decodes plainly", "no head"),
    CachedModel("owner/too-large-bf16", 70_000_000_000, "qwen-mtp", "speculates", ""),
    CachedModel("owner/[odd]-model", 0, None, "refused", "config.json is [broken]\nsecond line"),
]
LISTED = Models(0, FOUND, 48_000_000_000)
FIRST = RECOMMENDED[0]


def picking(**answers: list) -> Engines:
    return Engines({ListModels: [LISTED], **{globals()[name]: events for name, events in answers.items()}})


def asked_by_picker(ui: AppHarness) -> ScriptedEngine:
    """The engine that the picker started."""
    return next(engine for engine in ui.engines.all if engine.sent(ListModels) or engine.sent(Download))


async def choose(ui: AppHarness, name: str) -> None:
    """Go down to a line and press enter."""
    options = ui.app.screen.query_one(OptionList)
    options.highlighted = options.get_option_index(name)
    await ui.press("enter")


async def closed(ui: AppHarness) -> None:
    await ui.until(lambda: not isinstance(ui.app.screen, ModelPicker), "the chat again")


# -- choosing ---------------------------------------------------------------------------------------------------


@asynchronous
async def test_a_chat_without_a_model_asks_for_one_and_lists_what_is_there() -> None:
    engines = Engines()
    async with running_app(engines, ChatOptions(choose=True), status="choosing") as ui:
        await ui.sees("Choose a model", "the bundled demo", "looking into the Hub cache …", FIRST.repo)
        picker = asked_by_picker(ui)
        picker.say(LISTED)
        await ui.sees("owner/with-head-4bit", "5.2 GB", "this machine can use 48.0 GB")
        assert "looking into" not in ui.seen()
        lines = {line.split()[1]: line for line in ui.seen().splitlines() if "owner/" in line}
        assert "no head" in lines["owner/plain-4bit"]
        assert "too large here" in lines["owner/too-large-bf16"]
        assert "config.json is [broken]" in lines["owner/[odd]-model"]
        assert "second line" not in ui.seen()
        options = ui.app.screen.query_one(OptionList)
        assert options.get_option("owner/[odd]-model").disabled
        assert options.highlighted_option is not None
        assert options.highlighted_option.id == "demo"
        for one in RECOMMENDED:
            assert options.get_option(f"get {one.repo}")
        await ui.press("enter")
        await ui.reach("ready")
        load = ui.engine.sent(Load)[0]
        assert load.model is None
        assert load.head is None
        await closed(ui)
        await ui.until(lambda: picker.killed and picker.closed, "the end of the picker's engine")
        assert not ui.engine.killed


@asynchronous
async def test_a_cached_model_is_chosen_by_the_arrows() -> None:
    async with running_app(picking()) as ui:
        await ui.enter("/model")
        await ui.sees("owner/with-head-4bit")
        await ui.press("down", "enter")
        await closed(ui)
        assert ui.engine.sent(Load)[-1].model == "owner/with-head-4bit"
        await ui.reach("ready")
        await ui.sees("owner/with-head-4bit")
        await ui.press("x")
        assert ui.prompt.text == "x", "the prompt has the keys again"


@asynchronous
async def test_what_is_here_is_not_offered_for_download() -> None:
    here = Models(0, [CachedModel(FIRST.repo, 5_000_000_000, "gemma4", "speculates", "")], 48_000_000_000)
    async with running_app(Engines({ListModels: [here]})) as ui:
        await ui.enter("/model")
        await ui.until(lambda: FIRST.repo in {one.id for one in ui.app.screen.query_one(OptionList).options})
        ids = [one.id for one in ui.app.screen.query_one(OptionList).options]
        assert f"get {FIRST.repo}" not in ids
        assert ids.count(FIRST.repo) == 1


@pytest.mark.parametrize(
    ("typed", "loads"), [("./a folder", "./a folder"), ("owner/name", "owner/name"), ("demo", None)]
)
@asynchronous
async def test_a_path_or_a_repo_is_typed(typed: str, loads: str | None) -> None:
    async with running_app(picking(), ChatOptions("./first")) as ui:
        await ui.enter("/model")
        await ui.sees("owner/plain-4bit")
        await ui.press("tab", "space", "enter")
        assert isinstance(ui.app.screen, ModelPicker), "blanks are no name"
        ui.app.screen.query_one(Input).value = f" {typed} "
        await ui.press("enter")
        await closed(ui)
        assert ui.engine.sent(Load)[-1].model == loads


@asynchronous
async def test_esc_goes_back_and_a_message_then_waits_for_a_model() -> None:
    async with running_app(picking(), ChatOptions(choose=True), status="choosing") as ui:
        await ui.sees("owner/plain-4bit")
        await ui.press("escape")
        await closed(ui)
        assert ui.engine.sent(Load) == []
        await ui.sees("no model · /model chooses one")
        await ui.enter("hello")
        ui.engine.on(Generate, answering("at last"))
        await ui.enter("/model demo")
        await ui.sees("hello", "at last")


@asynchronous
async def test_the_picker_is_opened_once() -> None:
    async with running_app(picking()) as ui:
        await ui.enter("/model")
        ui.app.slash("model")
        await ui.pilot.pause()
        assert len(ui.app.screen_stack) == 2


@pytest.mark.parametrize("size", [(80, 24), (60, 24), (120, 16)])
@asynchronous
async def test_the_picker_fits_a_small_terminal(size: tuple[int, int]) -> None:
    async with running_app(picking(), size=size) as ui:
        await ui.enter("/model")
        await ui.sees("Choose a model", "the bundled demo", "owner/with-head-4bit", "5.2 GB")
        await ui.sees("or type a folder's path", "enter chooses")


# -- downloads --------------------------------------------------------------------------------------------------


@asynchronous
async def test_a_download_shows_its_progress_and_ends_with_the_model() -> None:
    wanted = next(one for one in RECOMMENDED if one.head)
    async with running_app(picking()) as ui:
        await ui.enter("/model")
        await ui.sees("owner/plain-4bit")
        await choose(ui, f"get {wanted.repo}")
        picker = asked_by_picker(ui)
        (download,) = picker.sent(Download)
        assert (download.repo, download.head) == (wanted.repo, wanted.head)
        await ui.sees(f"{wanted.repo}: asking the Hub", "esc cancels; what has come is kept")
        picker.say(Downloading(0, wanted.repo, 1_500_000_000, 6_000_000_000))
        await ui.sees(f"{wanted.repo}: 1.5 GB of 6.0 GB", "25%")
        picker.say(Downloading(0, str(wanted.head), 0, 0))
        await ui.sees(f"{wanted.head}: 0 bytes of 0 bytes")
        # another choice meanwhile starts no second one
        await choose(ui, f"get {FIRST.repo}")
        assert len(picker.sent(Download)) == 1
        picker.say(Downloaded(0, wanted.repo, None))
        await closed(ui)
        assert ui.engine.sent(Load)[-1].model == wanted.repo
        await ui.reach("ready")
        await ui.until(lambda: picker.closed)


@asynchronous
async def test_what_is_short_of_a_download_is_told() -> None:
    warning = "the model is here, its head is not: [/mtp] is missing"
    async with running_app(picking()) as ui:
        await ui.enter("/model")
        await ui.sees("owner/plain-4bit")
        ui.engines.newest.on(Download, [Downloaded(0, FIRST.repo, warning)])
        del ui.app.notify  # Textual's own, which would read brackets as markup
        await choose(ui, f"get {FIRST.repo}")
        await closed(ui)
        ui.app._disable_notifications = False
        assert warning in [notice.message for notice in ui.app._notifications]
        assert not any(notice.markup for notice in ui.app._notifications)


@asynchronous
async def test_esc_cancels_a_download_and_the_next_one_has_an_engine_of_its_own() -> None:
    async with running_app(picking()) as ui:
        await ui.enter("/model")
        await ui.sees("owner/plain-4bit")
        await choose(ui, f"get {FIRST.repo}")
        picker = asked_by_picker(ui)
        picker.say(Downloading(0, FIRST.repo, 1, 2))
        await ui.sees("1 bytes of 2 bytes")
        await ui.press("escape")
        await ui.sees(f"{FIRST.repo}: cancelled; the next download goes on from here", "esc goes back")
        assert picker.killed
        assert picker.closed
        assert not ui.app.screen.query_one(ProgressBar).display
        assert isinstance(ui.app.screen, ModelPicker)
        await choose(ui, f"get {FIRST.repo}")
        again = ui.engines.newest
        assert again is not picker
        assert again.sent(Download)[0].repo == FIRST.repo
        await ui.press("escape", "escape")
        await closed(ui)
        assert not ui.engine.killed
        assert ui.chat.state.status == "ready"
        assert len(ui.engine.sent(Load)) == 1


@pytest.mark.parametrize("how", ["failed", "died", "cannot start"])
@asynchronous
async def test_a_download_that_came_to_nothing_is_told_and_can_be_tried_again(how: str) -> None:
    async with running_app(picking()) as ui:
        await ui.enter("/model")
        await ui.sees("owner/plain-4bit")
        picker = asked_by_picker(ui)
        if how == "cannot start":
            picker.die(1, "gone")
            await ui.sees("the engine has died: gone")
            ui.engines.refusal = OSError("no processes left [1]")
        await choose(ui, f"get {FIRST.repo}")
        if how == "failed":
            picker.say(Failed(0, "failed", "the Hub cannot be reached [/x]"))
            await ui.sees("the Hub cannot be reached [/x]")
        elif how == "died":
            picker.die(-9, "out of [memory]")
            await ui.sees("the engine has died: out of [memory]")
        else:
            await ui.sees("the engine cannot be started: no processes left [1]")
        assert "esc goes back" in ui.seen()
        assert not ui.app.screen.query_one(ProgressBar).display
        ui.engines.refusal = None
        ui.engines.script[Download] = [Downloaded(0, FIRST.repo, None)]
        picker.on(Download, [Downloaded(0, FIRST.repo, None)])
        await choose(ui, f"get {FIRST.repo}")
        await closed(ui)
        assert ui.engine.sent(Load)[-1].model == FIRST.repo


@asynchronous
async def test_a_download_that_ends_under_the_help_closes_the_picker_all_the_same() -> None:
    async with running_app(picking()) as ui:
        await ui.enter("/model")
        await ui.sees("owner/plain-4bit")
        await choose(ui, f"get {FIRST.repo}")
        await ui.press("f1")
        assert isinstance(ui.app.screen, HelpScreen)
        picker = asked_by_picker(ui)
        picker.say(Downloaded(0, FIRST.repo, None))
        await ui.until(lambda: ui.engine.sent(Load)[-1].model == FIRST.repo, "the model")
        if isinstance(ui.app.screen, HelpScreen):
            await ui.press("escape")
        assert not any(isinstance(screen, ModelPicker) for screen in ui.app.screen_stack)
        await ui.reach("ready")


@asynchronous
async def test_leaving_ends_a_download() -> None:
    async with running_app(picking()) as ui:
        await ui.enter("/model")
        await ui.sees("owner/plain-4bit")
        await choose(ui, f"get {FIRST.repo}")
        picker = asked_by_picker(ui)
        await ui.press("ctrl+c", "ctrl+c")
        await ui.leaves()
    assert picker.killed
    assert picker.closed
    assert ui.engine.closed


@asynchronous
async def test_a_cache_that_cannot_be_listed_is_told() -> None:
    async with running_app(Engines({ListModels: [Failed(0, "failed", "the cache is unreadable")]})) as ui:
        await ui.enter("/model")
        await ui.sees("the cache is unreadable", "the bundled demo")
        assert "looking into" not in ui.seen()
        await ui.press("enter")
        await closed(ui)


# -- chats ------------------------------------------------------------------------------------------------------


@asynchronous
async def test_saved_chats_are_listed_the_newest_first_and_one_is_chosen() -> None:
    old, new = saved_chat(1, model="owner/old"), saved_chat(12, model="owner/new")
    session, _ = Session.resume(old)
    session.write_title("猫 [cats] 🐈 " + "long " * 30)
    session.close()
    os.utime(old, (1_000_000_000, 1_000_000_000))
    async with running_app() as ui:
        await ui.enter("/load")
        assert isinstance(ui.app.screen, ChatPicker)
        lines = ui.seen().splitlines()
        rows = [i for i, line in enumerate(lines) if "  owner/" in line]
        assert "12 turns  owner/new" in lines[rows[0]]
        assert "question 1 " in lines[rows[0]]
        assert "1 turn  owner/old" in lines[rows[1]]
        assert "猫 [cats] 🐈 long" in lines[rows[1]]
        assert "2001-09-09" in lines[rows[1]]
        columns = [lines[row].index("20", 50) for row in rows]
        assert len(columns) == 2
        await ui.press("escape")
        assert ui.turns == []
        await ui.enter("/resume")
        await ui.press("enter")
        await ui.sees("question 12", "answer 12")
        assert ui.chat.log.session.file == new
        await ui.press("x")
        assert ui.prompt.text == "x"


@asynchronous
async def test_without_a_saved_chat_there_is_no_list(chats: Path) -> None:
    async with running_app() as ui:
        await ui.enter("/load")
        assert ui.errors == [f"no saved chat in {chats}"]
        assert len(ui.app.screen_stack) == 1


@asynchronous
async def test_a_chat_that_is_open_elsewhere_is_not_taken() -> None:
    file = saved_chat(1)
    holder, _ = Session.resume(file)
    async with running_app() as ui:
        await ui.asks("mine", "one")
        carried = ui.turns
        await ui.enter(f"/load {file.stem}")
        assert "open in another mlxmtp" in ui.errors[-1]
        assert ui.turns == carried
    holder.close()
