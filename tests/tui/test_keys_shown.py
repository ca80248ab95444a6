"""Keys that change what is shown."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlxmtp_tui.app import ChatApp
from mlxmtp_tui.screens.help import KEYS, HelpScreen
from mlxmtp_tui.widgets.turns import ThinkingBlock, UserMessage
from textual.command import CommandPalette

from mlxmtp.worker.messages import Compare, Generate, Load
from tests.tui.harness import (
    Engines,
    answering,
    asynchronous,
    compared,
    finished,
    loaded,
    running_app,
    said,
    saved_chat,
)

# -- what is shown ----------------------------------------------------------------------------------------------


@asynchronous
async def test_ctrl_t_unfolds_and_folds_all_thinking() -> None:
    async with running_app() as ui:
        for question in ("a", "b"):
            ui.engine.on(Generate, [said(f"why {question}?", "thinking"), finished("so", thinking=f"why {question}?")])
            await ui.enter(question)
            await ui.reach("ready")
        await ui.until(lambda: len(ui.app.query(ThinkingBlock)) == 2)
        await ui.until(lambda: ui.seen().count("▸ thought (2 words)") == 2)
        assert "why" not in ui.seen()
        await ui.press("ctrl+t")
        await ui.until(lambda: ui.seen().count("▾ thought (2 words)") == 2)
        await ui.sees("why a?", "why b?")
        ui.engine.on(Generate, [said("why c?", "thinking")])
        await ui.enter("c")
        await ui.sees("▾ thinking … (2 words)", "why c?")
        await ui.press("ctrl+t")
        await ui.until(lambda: "why c?" not in ui.seen())
        assert "▾" not in ui.seen()


@asynchronous
async def test_ctrl_s_goes_round_the_statistics() -> None:
    async with running_app() as ui:
        ui.engine.on(Compare, [compared()])
        await ui.asks("a", "one")
        await ui.sees("demo · MTP auto · temp 0 · f1 help", "token-identical")
        await ui.press("ctrl+s")
        await ui.sees("tok/s of each turn", "accepted at depth 3")
        assert "token-identical" not in ui.seen()
        await ui.press("ctrl+s")
        await ui.until(lambda: "tok/s of each turn" not in ui.seen())
        assert "61.2 tok/s · 2.7 tok/round · 2,016 of 32,768" in ui.status
        await ui.press("ctrl+s")
        await ui.sees("token-identical")


@asynchronous
async def test_f1_opens_the_help_and_whatever_people_try_closes_it() -> None:
    async with running_app(size=(100, 60)) as ui:
        for key in ("escape", "q", "enter", "f1"):
            await ui.press("f1")
            assert isinstance(ui.app.screen, HelpScreen), key
            await ui.press(key)
            assert not isinstance(ui.app.screen, HelpScreen), key
        await ui.press("f1")
        for keys, what in KEYS:
            await ui.sees(keys, what)
        await ui.press("escape", "x")
        assert ui.prompt.text == "x", "the prompt has the keys again"


@asynchronous
async def test_ctrl_p_offers_every_command_with_its_arguments() -> None:
    async with running_app() as ui:
        await ui.press("ctrl+p")
        await ui.until(lambda: isinstance(ui.app.screen, CommandPalette))
        await ui.press(*"/depth")
        await ui.sees("/depth [N|auto]", "drafts a round")
        await ui.press("escape", "escape")
        await ui.press("ctrl+p", *"/stats")
        await ui.sees("the statistics: live, over the turns")
        await ui.press("enter", "enter")
        await ui.until(lambda: ui.app.stats_view == "turns")
        await ui.press("ctrl+p", *"Theme")
        await ui.sees("Change the current theme")
        await ui.press("escape")


@asynchronous
async def test_page_keys_scroll_and_load_what_was_before() -> None:
    from mlxmtp_tui.sessions import Session

    async with running_app(resumed=Session.resume(saved_chat(60))) as ui:
        transcript = ui.app.transcript
        assert transcript is not None
        await ui.sees("question 60", "answer 60")
        end = transcript.scroll_y
        assert end == transcript.max_scroll_y > 0
        await ui.press("pageup")
        await ui.until(lambda: transcript.scroll_y < end)
        assert transcript.scroll_y >= end - transcript.size.height
        # what comes meanwhile does not take the reader away
        at = transcript.scroll_y
        await ui.enter("/bench")
        ui.engine.say(compared())
        await ui.reach("ready")
        await ui.pilot.pause()
        await ui.press("pagedown", "pagedown", "pagedown")
        await ui.until(lambda: transcript.scroll_y == transcript.max_scroll_y)
        assert transcript.scroll_y > at
        await ui.press("ctrl+home")
        await ui.until(lambda: transcript.scroll_y == 0)
        await ui.sees("▲ 36 earlier turns", "question 37")
        # at the top, more of what was before comes, and the reader stays where he was
        await ui.press("pageup")
        await ui.until(lambda: len(ui.app.query(UserMessage)) == 48)
        await ui.until(lambda: transcript.scroll_y > 0)
        await ui.sees("question 37")
        await ui.press("ctrl+home")
        await ui.sees("▲ 12 earlier turns", "question 13")
        await ui.press("pageup")
        await ui.until(lambda: len(ui.app.query(UserMessage)) == 60)
        await ui.press("ctrl+home")
        await ui.until(lambda: transcript.scroll_y == 0)
        await ui.sees("▌ question 1 ")
        assert "earlier turn" not in ui.seen()
        await ui.press("ctrl+end")
        await ui.sees("question 60", "That is")


@asynchronous
async def test_ctrl_z_suspends(monkeypatch: pytest.MonkeyPatch) -> None:
    suspended: list[bool] = []
    monkeypatch.setattr(ChatApp, "action_suspend_process", lambda app: suspended.append(True))
    async with running_app() as ui:
        await ui.press("ctrl+z")
        assert suspended == [True]


@asynchronous
async def test_keys_of_the_chat_do_no_harm_over_the_help() -> None:
    async with running_app() as ui:
        await ui.asks("a", "one")
        await ui.press("f1")
        for key in ("ctrl+y", "ctrl+t", "ctrl+s", "ctrl+c", "ctrl+home", "ctrl+end", "pageup", "pagedown", "f1"):
            await ui.press(key)
            assert ui.app.is_running, key
        assert ui.turns == [("a", "one")]


def test_the_help_names_every_binding() -> None:
    """Keys that people cannot find are none."""
    named = " ".join(keys for keys, _ in KEYS) + " ".join(what for _, what in KEYS)
    spelled = {"escape": "esc", "pageup": "page up", "pagedown": "page down"}
    for binding in ChatApp.BINDINGS:
        if binding.key != "ctrl+z":  # every program of a terminal has it
            assert spelled.get(binding.key, binding.key) in named, binding.key


@asynchronous
async def test_what_is_typed_before_the_model_is_there_waits_for_it() -> None:
    engines = Engines({Load: []})
    async with running_app(engines, status="loading") as ui:
        await ui.sees("loading demo …")
        await ui.enter("early")
        await ui.sees("early", "loading demo …")
        assert ui.engine.sent(Generate) == []
        ui.engine.on(Generate, answering("at last"))
        ui.engine.say(loaded())
        await ui.sees("early", "at last")
        assert ui.turns == [("early", "at last")]


@asynchronous
async def test_a_message_while_an_answer_comes_stays_in_the_prompt() -> None:
    async with running_app() as ui:
        await ui.enter("go")
        await ui.write("next")
        await ui.press("enter")
        assert ui.told == "still busy; esc stops it"
        assert ui.prompt.text == "next"
        ui.engine.say(*answering("done"))
        await ui.reach("ready")
        ui.engine.on(Generate, answering("and done"))
        await ui.press("enter")
        await ui.until(lambda: ui.turns == [("go", "done"), ("next", "and done")])


@asynchronous
async def test_a_file_that_cannot_be_sent_keeps_the_message_in_the_prompt(home: Path) -> None:
    (home / "bad.bin").write_bytes(b"\0")
    async with running_app() as ui:
        await ui.enter("see @bad.bin")
        assert "bad.bin: not a text file" in ui.errors[-1]
        assert ui.prompt.text == "see @bad.bin"
        assert ui.turns == []
