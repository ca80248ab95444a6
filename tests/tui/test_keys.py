"""Every key does what the help says, in the application itself."""

from __future__ import annotations

import gc

import pytest
from mlxmtp_tui.options import ChatOptions
from mlxmtp_tui.widgets.prompt import Completions
from mlxmtp_tui.widgets.turns import UserMessage
from textual import events

from mlxmtp.worker.messages import Generate, Load
from tests.tui.harness import AppHarness, answering, asynchronous, running_app, said

# -- stopping, copying, leaving ---------------------------------------------------------------------------------


@asynchronous
async def test_esc_stops_and_keeps_what_came() -> None:
    async with running_app() as ui:
        await ui.enter("go on")
        ui.engine.say(said("This much"))
        await ui.sees("This much", "answering · esc stops")
        await ui.press("escape")
        await ui.reach("ready")
        assert ui.turns == [("go on", "This much")]
        await ui.sees("This much", "stopped · 40 tok")
        await ui.press("escape")
        assert ui.chat.state.status == "ready"


@asynchronous
async def test_ctrl_c_copies_else_stops_else_clears_and_twice_leaves(clipboard: list[str]) -> None:
    async with running_app() as ui:
        await ui.enter("go on")
        ui.engine.say(said("This much"))
        await ui.sees("This much")
        # a selection in the prompt
        await ui.write("copy me")
        await ui.press("shift+left", "shift+left", "ctrl+c")
        assert clipboard == ["me"]
        assert ui.told == "copied"
        assert ui.chat.state.status == "answering"
        assert ui.prompt.text == "copy me"
        # one in the conversation
        ui.prompt.move_cursor((0, 0))
        ui.app.query_one(UserMessage).text_select_all()
        await ui.press("ctrl+c")
        assert clipboard == ["me", "go on"]
        assert not ui.app.screen.get_selected_text()
        # none: it stops
        await ui.press("ctrl+c")
        await ui.reach("ready")
        assert ui.turns == [("go on", "This much")]
        assert ui.prompt.text == "copy me"
        # nothing runs: it clears
        await ui.press("ctrl+c")
        assert ui.prompt.text == ""
        assert ui.app.is_running
        # nothing to clear: twice leaves, but not when the first was long ago
        await ui.press("ctrl+c")
        assert ui.told == "ctrl+c again leaves"
        ui.app._interrupted_at -= 60
        await ui.press("ctrl+c")
        assert ui.app.is_running
        await ui.press("ctrl+c")
        await ui.leaves()
    assert ui.engine.closed
    assert clipboard == ["me", "go on"]


@asynchronous
async def test_leaving_while_an_answer_comes_keeps_it(recwarn: pytest.WarningsRecorder) -> None:
    async with running_app() as ui:
        await ui.enter("go on")
        ui.engine.say(said("This much"))
        await ui.sees("This much")
        await ui.enter("/exit")
        await ui.leaves()
        file = ui.chat.log.session.file
    assert ui.engine.closed
    async with running_app() as ui:
        await ui.enter(f"/load {file.stem}")
        await ui.sees("go on", "This much", "stopped")
    gc.collect()
    assert not [str(one.message) for one in recwarn if "never awaited" in str(one.message)], "on the user's terminal"


@asynchronous
async def test_ctrl_y_copies_the_last_answer_by_whichever_way_works(
    clipboard: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_app() as ui:
        await ui.press("ctrl+y")
        assert "no answer to copy" in ui.errors[-1]
        await ui.asks("a", "**first** answer")
        await ui.asks("b", "second `answer`")
        await ui.press("ctrl+y")
        assert clipboard == ["second `answer`"], "as the model wrote it"
        assert ui.told == "copied"
        by_terminal: list[str] = []
        monkeypatch.setattr("mlxmtp_tui.clipboard.copy", lambda text: False)
        monkeypatch.setattr(ui.app, "copy_to_clipboard", by_terminal.append)
        await ui.press("ctrl+y")
        assert by_terminal == ["second `answer`"]


# -- again, back, on --------------------------------------------------------------------------------------------


@asynchronous
async def test_ctrl_r_answers_the_last_message_again() -> None:
    async with running_app() as ui:
        await ui.press("ctrl+r")
        assert ui.told == "nothing to answer again"
        await ui.asks("a", "one")
        await ui.asks("b", "two")
        ui.engine.on(Generate, answering("three"))
        await ui.press("ctrl+r")
        await ui.until(lambda: ui.turns == [("a", "one"), ("b", "three")])
        await ui.sees("three")
        assert "two" not in ui.seen()
        assert len(ui.app.query(UserMessage)) == 2


@asynchronous
async def test_ctrl_r_starts_an_engine_that_is_gone_and_the_chat_goes_on() -> None:
    async with running_app(options=ChatOptions("./model")) as ui:
        await ui.asks("a", "one")
        ui.engine.on(Generate, [])
        await ui.enter("b")
        ui.engine.say(said("half of"))
        await ui.sees("half of")
        ui.engine.die(-9, "std::bad_alloc")
        await ui.reach("gone")
        await ui.sees("no engine · ctrl+r starts it", "half of", "broken off")
        assert "killed, perhaps because memory ran out" in ui.errors[-1]
        assert "std::bad_alloc" in ui.errors[-1]
        assert ui.turns == [("a", "one"), ("b", "half of")]
        await ui.enter("c")
        await ui.press("ctrl+r")
        await ui.until(lambda: len(ui.engines.all) == 2)
        engine = ui.engines.newest
        assert engine.sent(Load)[0].model == "./model"
        await ui.until(lambda: engine.sent(Generate), "what was asked in between")
        assert [one["content"] for one in engine.sent(Generate)[0].messages] == ["a", "one", "b", "half of", "c"]
        engine.say(*answering("after all"))
        await ui.sees("after all")
        assert ui.turns[-1] == ("c", "after all")


@asynchronous
async def test_a_silent_engine_is_told_and_ctrl_r_replaces_it() -> None:
    async with running_app() as ui:
        now = 1_000.0
        ui.chat.state.clock = lambda: now
        await ui.enter("go")
        ui.engine.deaf = True
        await ui.sees("answering · esc stops")
        now += 19
        await ui.pilot.pause(0.3)  # a tick
        assert "ctrl+r" not in ui.status
        now += 6
        await ui.sees("the engine has said nothing for 25 s · ctrl+r restarts it")
        await ui.press("ctrl+r")
        await ui.reach("ready")
        assert ui.engine.killed
        assert len(ui.engines.all) == 2
        assert ui.turns == [("go", "")]
        ui.engines.newest.on(Generate, answering("awake"))
        await ui.enter("again")
        await ui.sees("awake")
        assert "said nothing" not in ui.status


@asynchronous
async def test_ctrl_o_takes_the_last_message_back_to_change_it() -> None:
    async with running_app() as ui:
        await ui.press("ctrl+o")
        assert ui.told == "nothing to take back"
        await ui.asks("a", "one")
        await ui.asks("b\nc", "two")
        await ui.press("ctrl+o")
        assert ui.prompt.text == "b\nc"
        assert ui.turns == [("a", "one")]
        await ui.until(lambda: len(ui.app.query(UserMessage)) == 1)
        assert "two" not in ui.seen()
        ui.engine.on(Generate, answering("three"))
        await ui.press("!", "enter")
        await ui.until(lambda: ui.turns == [("a", "one"), ("b\nc!", "three")])
        # not while an answer comes
        ui.engine.on(Generate, [said("four")])
        await ui.enter("d")
        await ui.press("ctrl+o")
        assert ui.told == "not now; esc stops what runs"
        assert ui.prompt.text == ""


@asynchronous
async def test_a_draft_is_not_lost_when_a_message_is_taken_back() -> None:
    async with running_app() as ui:
        await ui.asks("a", "one")
        await ui.write("a draft")
        await ui.press("ctrl+o")
        if ui.prompt.text != "a draft":  # it may be refused, or be one step away
            await ui.press("down")
        assert ui.prompt.text == "a draft"


# -- keys that come faster than the screen is drawn ---------------------------------------------------------------


async def burst(ui: AppHarness, text: str, *keys: str) -> None:
    """Keys of which none waits for what the one before has changed."""
    for character in text:
        ui.prompt.post_message(events.Key(character, character))
    for key in keys:
        ui.prompt.post_message(events.Key(key, None))
    await ui.pilot.pause()


@asynchronous
async def test_enter_right_behind_a_command_takes_no_completion_of_its_beginning() -> None:
    async with running_app() as ui:
        await burst(ui, "/seed 7", "enter")
        assert ui.app.chat.settings.seed == 7
        await burst(ui, "/seed x", "enter")
        assert "'x'" in ui.errors[-1]
        await burst(ui, "/see", "tab")
        assert ui.prompt.text == "/seed "


@asynchronous
async def test_completions_follow_the_cursor_and_keep_the_row_that_was_chosen() -> None:
    async with running_app() as ui:
        completions = ui.app.query_one(Completions)
        await ui.press("/", "s", "down", "down")
        chosen = completions.chosen
        assert chosen not in (None, "/s", "/seed")
        await ui.press(str(chosen)[2])
        assert completions.chosen == chosen
        await ui.press("escape", "left")
        assert completions.chosen is None
        await burst(ui, "", "tab")
        assert completions.chosen is None, "what was closed stays so"
