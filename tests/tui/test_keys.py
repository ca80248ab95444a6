"""Every key does what the help says, in the application itself."""

from __future__ import annotations

import gc

import pytest
from mlxmtp_tui.roles import Options
from mlxmtp_tui.widgets.prompt import Completions
from mlxmtp_tui.widgets.turns import Asked
from textual import events

from mlxmtp.worker.messages import Generate, Load
from tests.tui.scripted import Desk, answering, asynchronous, chatting, said

# -- stopping, copying, leaving ---------------------------------------------------------------------------------


@asynchronous
async def test_esc_stops_and_keeps_what_came() -> None:
    async with chatting() as desk:
        await desk.enter("go on")
        desk.engine.say(said("This much"))
        await desk.sees("This much", "answering · esc stops")
        await desk.press("escape")
        await desk.reach("ready")
        assert desk.turns == [("go on", "This much")]
        await desk.sees("This much", "stopped · 40 tok")
        await desk.press("escape")
        assert desk.chat.live.status == "ready"


@asynchronous
async def test_ctrl_c_copies_else_stops_else_clears_and_twice_leaves(clipboard: list[str]) -> None:
    async with chatting() as desk:
        await desk.enter("go on")
        desk.engine.say(said("This much"))
        await desk.sees("This much")
        # a selection in the prompt
        await desk.write("copy me")
        await desk.press("shift+left", "shift+left", "ctrl+c")
        assert clipboard == ["me"]
        assert desk.told == "copied"
        assert desk.chat.live.status == "answering"
        assert desk.prompt.text == "copy me"
        # one in the conversation
        desk.prompt.move_cursor((0, 0))
        desk.app.query_one(Asked).text_select_all()
        await desk.press("ctrl+c")
        assert clipboard == ["me", "go on"]
        assert not desk.app.screen.get_selected_text()
        # none: it stops
        await desk.press("ctrl+c")
        await desk.reach("ready")
        assert desk.turns == [("go on", "This much")]
        assert desk.prompt.text == "copy me"
        # nothing runs: it clears
        await desk.press("ctrl+c")
        assert desk.prompt.text == ""
        assert desk.app.is_running
        # nothing to clear: twice leaves, but not when the first was long ago
        await desk.press("ctrl+c")
        assert desk.told == "ctrl+c again leaves"
        desk.app._interrupted_at -= 60
        await desk.press("ctrl+c")
        assert desk.app.is_running
        await desk.press("ctrl+c")
        await desk.leaves()
    assert desk.engine.closed
    assert clipboard == ["me", "go on"]


@asynchronous
async def test_leaving_while_an_answer_comes_keeps_it(recwarn: pytest.WarningsRecorder) -> None:
    async with chatting() as desk:
        await desk.enter("go on")
        desk.engine.say(said("This much"))
        await desk.sees("This much")
        await desk.enter("/exit")
        await desk.leaves()
        file = desk.chat.session.file
    assert desk.engine.closed
    async with chatting() as desk:
        await desk.enter(f"/load {file.stem}")
        await desk.sees("go on", "This much", "stopped")
    gc.collect()
    assert not [str(one.message) for one in recwarn if "never awaited" in str(one.message)], "on the user's terminal"


@asynchronous
async def test_ctrl_y_copies_the_last_answer_by_whichever_way_works(
    clipboard: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with chatting() as desk:
        await desk.press("ctrl+y")
        assert "no answer to copy" in desk.errors[-1]
        await desk.asks("a", "**first** answer")
        await desk.asks("b", "second `answer`")
        await desk.press("ctrl+y")
        assert clipboard == ["second `answer`"], "as the model wrote it"
        assert desk.told == "copied"
        by_terminal: list[str] = []
        monkeypatch.setattr("mlxmtp_tui.clipboard.copied", lambda text: False)
        monkeypatch.setattr(desk.app, "copy_to_clipboard", by_terminal.append)
        await desk.press("ctrl+y")
        assert by_terminal == ["second `answer`"]


# -- again, back, on --------------------------------------------------------------------------------------------


@asynchronous
async def test_ctrl_r_answers_the_last_message_again() -> None:
    async with chatting() as desk:
        await desk.press("ctrl+r")
        assert desk.told == "nothing to answer again"
        await desk.asks("a", "one")
        await desk.asks("b", "two")
        desk.engine.on(Generate, answering("three"))
        await desk.press("ctrl+r")
        await desk.until(lambda: desk.turns == [("a", "one"), ("b", "three")])
        await desk.sees("three")
        assert "two" not in desk.seen()
        assert len(desk.app.query(Asked)) == 2


@asynchronous
async def test_ctrl_r_starts_an_engine_that_is_gone_and_the_chat_goes_on() -> None:
    async with chatting(options=Options("./model")) as desk:
        await desk.asks("a", "one")
        desk.engine.on(Generate, [])
        await desk.enter("b")
        desk.engine.say(said("half of"))
        await desk.sees("half of")
        desk.engine.die(-9, "std::bad_alloc")
        await desk.reach("gone")
        await desk.sees("no engine · ctrl+r starts it", "half of", "broken off")
        assert "killed, perhaps because memory ran out" in desk.errors[-1]
        assert "std::bad_alloc" in desk.errors[-1]
        assert desk.turns == [("a", "one"), ("b", "half of")]
        await desk.enter("c")
        await desk.press("ctrl+r")
        await desk.until(lambda: len(desk.engines.all) == 2)
        engine = desk.engines.newest
        assert engine.sent(Load)[0].model == "./model"
        await desk.until(lambda: engine.sent(Generate), "what was asked in between")
        assert [one["content"] for one in engine.sent(Generate)[0].messages] == ["a", "one", "b", "half of", "c"]
        engine.say(*answering("after all"))
        await desk.sees("after all")
        assert desk.turns[-1] == ("c", "after all")


@asynchronous
async def test_a_silent_engine_is_told_and_ctrl_r_replaces_it() -> None:
    async with chatting() as desk:
        now = 1_000.0
        desk.chat.live.clock = lambda: now
        await desk.enter("go")
        desk.engine.deaf = True
        await desk.sees("answering · esc stops")
        now += 19
        await desk.pilot.pause(0.3)  # a tick
        assert "ctrl+r" not in desk.status
        now += 6
        await desk.sees("the engine has said nothing for 25 s · ctrl+r restarts it")
        await desk.press("ctrl+r")
        await desk.reach("ready")
        assert desk.engine.killed
        assert len(desk.engines.all) == 2
        assert desk.turns == [("go", "")]
        desk.engines.newest.on(Generate, answering("awake"))
        await desk.enter("again")
        await desk.sees("awake")
        assert "said nothing" not in desk.status


@asynchronous
async def test_ctrl_o_takes_the_last_message_back_to_change_it() -> None:
    async with chatting() as desk:
        await desk.press("ctrl+o")
        assert desk.told == "nothing to take back"
        await desk.asks("a", "one")
        await desk.asks("b\nc", "two")
        await desk.press("ctrl+o")
        assert desk.prompt.text == "b\nc"
        assert desk.turns == [("a", "one")]
        await desk.until(lambda: len(desk.app.query(Asked)) == 1)
        assert "two" not in desk.seen()
        desk.engine.on(Generate, answering("three"))
        await desk.press("!", "enter")
        await desk.until(lambda: desk.turns == [("a", "one"), ("b\nc!", "three")])
        # not while an answer comes
        desk.engine.on(Generate, [said("four")])
        await desk.enter("d")
        await desk.press("ctrl+o")
        assert desk.told == "not now; esc stops what runs"
        assert desk.prompt.text == ""


@asynchronous
async def test_a_draft_is_not_lost_when_a_message_is_taken_back() -> None:
    async with chatting() as desk:
        await desk.asks("a", "one")
        await desk.write("a draft")
        await desk.press("ctrl+o")
        if desk.prompt.text != "a draft":  # it may be refused, or be one step away
            await desk.press("down")
        assert desk.prompt.text == "a draft"


# -- keys that come faster than the screen is drawn ---------------------------------------------------------------


async def burst(desk: Desk, text: str, *keys: str) -> None:
    """Keys of which none waits for what the one before has changed."""
    for character in text:
        desk.prompt.post_message(events.Key(character, character))
    for key in keys:
        desk.prompt.post_message(events.Key(key, None))
    await desk.pilot.pause()


@asynchronous
async def test_enter_right_behind_a_command_takes_no_completion_of_its_beginning() -> None:
    async with chatting() as desk:
        await burst(desk, "/seed 7", "enter")
        assert desk.app.chat.settings.seed == 7
        await burst(desk, "/seed x", "enter")
        assert "'x'" in desk.errors[-1]
        await burst(desk, "/see", "tab")
        assert desk.prompt.text == "/seed "


@asynchronous
async def test_completions_follow_the_cursor_and_keep_the_row_that_was_chosen() -> None:
    async with chatting() as desk:
        completions = desk.app.query_one(Completions)
        await desk.press("/", "s", "down", "down")
        chosen = completions.chosen
        assert chosen not in (None, "/s", "/seed")
        await desk.press(str(chosen)[2])
        assert completions.chosen == chosen
        await desk.press("escape", "left")
        assert completions.chosen is None
        await burst(desk, "", "tab")
        assert completions.chosen is None, "what was closed stays so"
