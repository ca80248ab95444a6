"""Keys that change what is shown."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlxmtp_tui.app import ChatApp
from mlxmtp_tui.screens.help import KEYS, Help
from mlxmtp_tui.widgets.turns import Asked, Thinking
from textual.command import CommandPalette

from mlxmtp.worker.messages import Compare, Generate, Load
from tests.tui.scripted import Engines, answering, asynchronous, chatting, compared, finished, loaded, said, saved_chat

# -- what is shown ----------------------------------------------------------------------------------------------


@asynchronous
async def test_ctrl_t_unfolds_and_folds_all_thinking() -> None:
    async with chatting() as desk:
        for question in ("a", "b"):
            desk.engine.on(
                Generate, [said(f"why {question}?", "thinking"), finished("so", thinking=f"why {question}?")]
            )
            await desk.enter(question)
            await desk.reach("ready")
        await desk.until(lambda: len(desk.app.query(Thinking)) == 2)
        await desk.until(lambda: desk.seen().count("▸ thought (2 words)") == 2)
        assert "why" not in desk.seen()
        await desk.press("ctrl+t")
        await desk.until(lambda: desk.seen().count("▾ thought (2 words)") == 2)
        await desk.sees("why a?", "why b?")
        desk.engine.on(Generate, [said("why c?", "thinking")])
        await desk.enter("c")
        await desk.sees("▾ thinking … (2 words)", "why c?")
        await desk.press("ctrl+t")
        await desk.until(lambda: "why c?" not in desk.seen())
        assert "▾" not in desk.seen()


@asynchronous
async def test_ctrl_s_goes_round_the_statistics() -> None:
    async with chatting() as desk:
        desk.engine.on(Compare, [compared()])
        await desk.asks("a", "one")
        await desk.sees("enter sends · ctrl+j new line · f1 help", "token-identical")
        await desk.press("ctrl+s")
        await desk.sees("tok/s of each turn", "accepted at depth 3")
        assert "token-identical" not in desk.seen()
        await desk.press("ctrl+s")
        await desk.until(lambda: "tok/s of each turn" not in desk.seen())
        assert "61.2 tok/s · 2.7 tok/round · 2,016 of 32,768" in desk.status
        await desk.press("ctrl+s")
        await desk.sees("token-identical")


@asynchronous
async def test_f1_opens_the_help_and_whatever_people_try_closes_it() -> None:
    async with chatting(size=(100, 60)) as desk:
        for key in ("escape", "q", "enter", "f1"):
            await desk.press("f1")
            assert isinstance(desk.app.screen, Help), key
            await desk.press(key)
            assert not isinstance(desk.app.screen, Help), key
        await desk.press("f1")
        for keys, what in KEYS:
            await desk.sees(keys, what)
        await desk.press("escape", "x")
        assert desk.prompt.text == "x", "the prompt has the keys again"


@asynchronous
async def test_ctrl_p_offers_every_command_with_its_arguments() -> None:
    async with chatting() as desk:
        await desk.press("ctrl+p")
        await desk.until(lambda: isinstance(desk.app.screen, CommandPalette))
        await desk.press(*"/depth")
        await desk.sees("/depth [N|auto]", "drafts a round")
        await desk.press("escape", "escape")
        await desk.press("ctrl+p", *"/stats")
        await desk.sees("the statistics: live, over the turns")
        await desk.press("enter", "enter")
        await desk.until(lambda: desk.app.stats_view == "turns")
        await desk.press("ctrl+p", *"Theme")
        await desk.sees("Change the current theme")
        await desk.press("escape")


@asynchronous
async def test_page_keys_scroll_and_load_what_was_before() -> None:
    from mlxmtp_tui.sessions import Session

    async with chatting(resumed=Session.resume(saved_chat(60))) as desk:
        transcript = desk.app.transcript
        assert transcript is not None
        await desk.sees("question 60", "answer 60")
        end = transcript.scroll_y
        assert end == transcript.max_scroll_y > 0
        await desk.press("pageup")
        await desk.until(lambda: transcript.scroll_y < end)
        assert transcript.scroll_y >= end - transcript.size.height
        # what comes meanwhile does not take the reader away
        at = transcript.scroll_y
        await desk.enter("/bench")
        desk.engine.say(compared())
        await desk.reach("ready")
        await desk.pilot.pause()
        await desk.press("pagedown", "pagedown", "pagedown")
        await desk.until(lambda: transcript.scroll_y == transcript.max_scroll_y)
        assert transcript.scroll_y > at
        await desk.press("ctrl+home")
        await desk.until(lambda: transcript.scroll_y == 0)
        await desk.sees("▲ 36 earlier turns", "question 37")
        # at the top, more of what was before comes, and the reader stays where he was
        await desk.press("pageup")
        await desk.until(lambda: len(desk.app.query(Asked)) == 48)
        await desk.until(lambda: transcript.scroll_y > 0)
        await desk.sees("question 37")
        await desk.press("ctrl+home")
        await desk.sees("▲ 12 earlier turns", "question 13")
        await desk.press("pageup")
        await desk.until(lambda: len(desk.app.query(Asked)) == 60)
        await desk.press("ctrl+home")
        await desk.until(lambda: transcript.scroll_y == 0)
        await desk.sees("▌ question 1 ")
        assert "earlier turn" not in desk.seen()
        await desk.press("ctrl+end")
        await desk.sees("question 60", "That is")


@asynchronous
async def test_ctrl_z_suspends(monkeypatch: pytest.MonkeyPatch) -> None:
    suspended: list[bool] = []
    monkeypatch.setattr(ChatApp, "action_suspend_process", lambda app: suspended.append(True))
    async with chatting() as desk:
        await desk.press("ctrl+z")
        assert suspended == [True]


@asynchronous
async def test_keys_of_the_chat_do_no_harm_over_the_help() -> None:
    async with chatting() as desk:
        await desk.asks("a", "one")
        await desk.press("f1")
        for key in ("ctrl+y", "ctrl+t", "ctrl+s", "ctrl+c", "ctrl+home", "ctrl+end", "pageup", "pagedown", "f1"):
            await desk.press(key)
            assert desk.app.is_running, key
        assert desk.turns == [("a", "one")]


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
    async with chatting(engines, status="loading") as desk:
        await desk.sees("loading demo …")
        await desk.enter("early")
        await desk.sees("early", "loading demo …")
        assert desk.engine.sent(Generate) == []
        desk.engine.on(Generate, answering("at last"))
        desk.engine.say(loaded())
        await desk.sees("early", "at last")
        assert desk.turns == [("early", "at last")]


@asynchronous
async def test_a_message_while_an_answer_comes_stays_in_the_prompt() -> None:
    async with chatting() as desk:
        await desk.enter("go")
        await desk.write("next")
        await desk.press("enter")
        assert desk.told == "still busy; esc stops it"
        assert desk.prompt.text == "next"
        desk.engine.say(*answering("done"))
        await desk.reach("ready")
        desk.engine.on(Generate, answering("and done"))
        await desk.press("enter")
        await desk.until(lambda: desk.turns == [("go", "done"), ("next", "and done")])


@asynchronous
async def test_a_file_that_cannot_be_sent_keeps_the_message_in_the_prompt(home: Path) -> None:
    (home / "bad.bin").write_bytes(b"\0")
    async with chatting() as desk:
        await desk.enter("see @bad.bin")
        assert "bad.bin: not a text file" in desk.errors[-1]
        assert desk.prompt.text == "see @bad.bin"
        assert desk.turns == []
