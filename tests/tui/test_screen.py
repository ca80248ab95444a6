"""What the conversation looks like: as it comes, after it came, when it is long and when the terminal is narrow."""

from __future__ import annotations

import pytest
from mlxmtp_tui.conversation import Answer
from mlxmtp_tui.options import ChatOptions
from mlxmtp_tui.sessions import Session
from mlxmtp_tui.widgets.panel import Panel
from mlxmtp_tui.widgets.transcript import MOUNTED_TURNS, EarlierTurns
from mlxmtp_tui.widgets.turns import StatsLine, ThinkingBlock, ToolCallBlock, UserMessage

from mlxmtp.worker.messages import Downloading, Failed, Finished, Generate, Load, PromptProgress, TurnDelta
from tests.grids import cases
from tests.tui.harness import (
    MEMORY,
    Engines,
    answering,
    asynchronous,
    finished,
    loaded,
    message,
    running_app,
    said,
    saved_chat,
    stats,
)

CALLS = [("weather", {"city": "Zürich"}), ("time", {"zone": "CET"})]


# -- an answer that comes ---------------------------------------------------------------------------------------


@asynchronous
async def test_an_answer_of_all_kinds_of_parts_is_drawn_as_it_comes() -> None:
    async with running_app() as ui:
        await ui.enter("Weather?")
        await ui.sees("Weather?", "answering · esc stops")
        ui.engine.say(said("Which", "thinking"))
        await ui.sees("▸ thinking … (1 word)")
        ui.engine.say(said(" city?\n", "thinking"))
        await ui.sees("▸ thinking … (2 words)")
        assert "city" not in ui.seen(ui.app.query_one(ThinkingBlock)), "folded"
        ui.engine.say(said("\n\nLet me **lo"))
        await ui.sees("▸ thought (2 words)", "Let me")
        ui.engine.say(said("ok**:\n\n- one\n- tw"))
        await ui.sees("Let me look:", "• one")
        ui.engine.say(said("o\n\n```python\nx = 1"))
        await ui.sees("• two", "x = 1")
        ui.engine.say(said("\n```\n"))
        # two calls with nothing but an empty text between them, as engine/output.py says them
        first = TurnDelta(0, [["tool", '{"name": "wea'], ["tool", 'ther"}']], stats(40), MEMORY)
        second = TurnDelta(0, [["text", ""], ["tool", '{"name": "time"}']], stats(40), MEMORY)
        ui.engine.say(first)
        await ui.sees('⚒ {"name": "weather"}')
        ui.engine.say(second)
        await ui.until(lambda: len(ui.app.query(ToolCallBlock)) == 2, "two calls")
        ui.engine.say(Finished(0, "stop", message("Let me look", "Which city?", CALLS), stats(90), MEMORY))
        await ui.sees("⚒ weather(city='Zürich')", "⚒ time(zone='CET')", "90 tok · 61.2 tok/s · 2.7 tok/round")
        assert "```" not in ui.seen()
        assert '{"name"' not in ui.seen()


@asynchronous
async def test_calls_that_come_all_at_once_are_two_calls() -> None:
    async with running_app() as ui:
        await ui.enter("Weather?")
        parts = [["tool", "call one"], ["text", ""], ["tool", "call two"]]
        ui.engine.say(TurnDelta(0, parts, stats(40), MEMORY))
        ui.engine.say(Finished(0, "stop", message("", "", CALLS), stats(40), MEMORY))
        await ui.sees("⚒ weather(city='Zürich')", "⚒ time(zone='CET')")


@asynchronous
async def test_thinking_is_unfolded_by_a_click_and_stays_so_while_it_grows() -> None:
    async with running_app() as ui:
        await ui.enter("go")
        ui.engine.say(said("first thought", "thinking"))
        await ui.sees("▸ thinking … (2 words)")
        await ui.pilot.click(ThinkingBlock)
        await ui.sees("▾ thinking … (2 words)", "first thought")
        ui.engine.say(said(" and more", "thinking"))
        await ui.sees("first thought and more")
        ui.engine.say(finished("so", thinking="first thought and more"), said("late", "text"))
        await ui.sees("▾ thought (4 words)")
        await ui.pilot.click(ThinkingBlock)
        await ui.sees("▸ thought (4 words)")
        assert "first thought" not in ui.seen()


@asynchronous
async def test_a_turn_that_fails_says_so_and_keeps_what_came() -> None:
    async with running_app() as ui:
        await ui.enter("go")
        ui.engine.say(said("This much"))
        await ui.sees("This much")
        ui.engine.say(Failed(0, "memory", "[malloc] Unable to allocate"))
        await ui.sees("This much", "broken off")
        assert ui.errors == ["[malloc] Unable to allocate; try a smaller model or a shorter chat"]
        await ui.asks("next", "goes on")


@asynchronous
async def test_a_fast_answer_is_drawn_whole_and_once() -> None:
    """Nothing may get lost between what the chat knows and what the screen is about to draw."""
    text = "\n\n".join(f"paragraph {i}" for i in range(5))
    parts = [said(text[i : i + 3]) for i in range(0, len(text), 3)]
    async with running_app(size=(100, 60)) as ui:
        for key in (None, "ctrl+r", "ctrl+r"):
            ui.engine.on(Generate, [*parts, finished(text)])
            if key:
                await ui.press(key)
            else:
                await ui.enter("go")
            await ui.until(ui.drawn)
            await ui.sees("paragraph 4")
            assert [ui.seen().count(f"paragraph {i}") for i in range(5)] == [1] * 5
        assert len(ui.app.query(StatsLine)) == 1


@asynchronous
async def test_the_newest_line_is_followed_until_the_reader_scrolls() -> None:
    async with running_app(size=(80, 20)) as ui:
        transcript = ui.app.transcript
        assert transcript is not None
        await ui.enter("go")
        ui.engine.say(said("".join(f"line {i}\n\n" for i in range(40))))
        await ui.sees("line 39")
        await ui.press("pageup")
        await ui.until(lambda: "line 39" not in ui.seen())
        at = transcript.scroll_y
        ui.engine.say(said("".join(f"line {i}\n\n" for i in range(40, 60))))
        await ui.until(lambda: transcript.max_scroll_y > at + 40, "the rest")
        assert transcript.scroll_y == at
        await ui.press("ctrl+end")
        await ui.sees("line 59")
        ui.engine.say(said("the last line"))
        await ui.sees("the last line")


@asynchronous
async def test_reading_and_fetching_have_their_progress() -> None:
    engines = Engines({Load: []})
    async with running_app(engines, ChatOptions("owner/name"), status="loading") as ui:
        ui.engine.say(Downloading(0, "owner/name", 1_000_000_000, 4_000_000_000))
        await ui.sees("fetching owner/name", "25%", "1.0 GB of 4.0 GB")
        ui.engine.say(loaded("owner/name"))
        await ui.reach("ready")
        await ui.enter("go")
        ui.engine.say(PromptProgress(0, 512, 2_048))
        await ui.sees("reading  512 of 2,048 tokens", "25%")
        ui.engine.say(*answering("done"))
        await ui.sees("done")
        assert "reading" not in ui.seen()


@asynchronous
async def test_a_model_that_cannot_be_loaded_is_told_and_another_one_can_be() -> None:
    engines = Engines({Load: [Failed(0, "refused", "owner/name: config.json is missing")]})
    async with running_app(engines, ChatOptions("owner/name"), status="choosing") as ui:
        assert ui.errors == ["owner/name: config.json is missing"]
        await ui.sees("no model · /model chooses one")
        ui.engine.on(Load, [loaded()])
        await ui.enter("/model demo")
        await ui.reach("ready")


# -- a chat that was saved --------------------------------------------------------------------------------------


@asynchronous
async def test_a_resumed_chat_looks_as_it_did() -> None:
    session = Session.new("demo")
    session.write_user("Weather?", "Weather?")
    session.write_answer(Answer(message("Let me **look**.", "Which city?", CALLS), "stop", stats(), 1.49))
    session.write_user("And?", "And?")
    session.write_answer(Answer(message("It ends"), "length", stats(5)))
    session.write_user("unanswered", "unanswered")
    session.close()
    async with running_app(resumed=Session.resume(session.file)) as ui:
        await ui.sees("Weather?", "Let me look.", "▸ thought (2 words)")
        await ui.sees("⚒ weather(city='Zürich')", "⚒ time(zone='CET')", "1.49× plain")
        await ui.sees("And?", "It ends", "token limit reached", "unanswered")
        assert "city?" not in ui.seen()
        await ui.press("ctrl+t")
        await ui.sees("▾ thought (2 words)", "Which city?")
        await ui.press("ctrl+s")
        await ui.sees("tok/s of each turn")
        # and it goes on: the question that has no answer is asked again
        ui.engine.on(Generate, answering("now"))
        await ui.press("ctrl+r")
        await ui.until(lambda: ui.turns[-1] == ("unanswered", "now"))
        roles = [one["role"] for one in ui.engine.sent(Generate)[0].messages]
        assert roles == ["user", "assistant", "user", "assistant", "user"]


@asynchronous
async def test_a_thousand_turns_are_mounted_a_few_at_a_time() -> None:
    file = saved_chat(1_000)
    async with running_app(resumed=Session.resume(file)) as ui:
        await ui.sees("question 1000", "answer 1000")
        assert len(ui.app.query(UserMessage)) == MOUNTED_TURNS
        assert len(ui.turns) == 1_000
        await ui.press("ctrl+home")
        await ui.sees(f"▲ {1_000 - MOUNTED_TURNS} earlier turns")
        await ui.pilot.click(EarlierTurns)
        await ui.until(lambda: len(ui.app.query(UserMessage)) == 2 * MOUNTED_TURNS)
        await ui.sees(f"question {1_000 - MOUNTED_TURNS + 1} ")
        numbers = [int(asked.visual.plain.split()[1]) for asked in ui.app.query(UserMessage)]
        assert numbers == list(range(1_001 - 2 * MOUNTED_TURNS, 1_001)), "in order, none twice"
        # new turns make room for themselves
        ui.engine.on(Generate, answering("new"))
        for i in range(3):
            await ui.enter(f"question {1_001 + i}")
            await ui.until(lambda i=i: ui.turns[-1] == (f"question {1_001 + i}", "new"))
        await ui.sees("question 1003")
        await ui.until(lambda: len(ui.app.query(UserMessage)) <= MOUNTED_TURNS + 3)
        numbers = [int(asked.visual.plain.split()[1]) for asked in ui.app.query(UserMessage)]
        assert numbers == list(range(numbers[0], 1_004))
        await ui.press("ctrl+home")
        await ui.sees(f"▲ {numbers[0] - 1} earlier turns")
        assert [one["content"] for one in ui.engine.sent(Generate)[0].messages][:2] == ["question 1", "answer 1"]


@asynchronous
async def test_a_long_question_is_folded_until_it_is_clicked() -> None:
    async with running_app(size=(100, 60)) as ui:
        await ui.asks("\n".join(f"line {i}" for i in range(30)), "ok")
        await ui.sees("line 15", "… 14 more lines", "ok")
        assert "line 16" not in ui.seen()
        await ui.pilot.click(UserMessage)
        await ui.sees("line 16", "line 29")


# -- narrow and wide --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "folded"),
    cases([(40, True), (60, True), (99, True), (100, False), (150, False)], default=[(99, True), (100, False)]),
)
@asynchronous
async def test_the_panel_folds_to_a_line_in_a_narrow_terminal(columns: int, folded: bool) -> None:
    async with running_app(size=(columns, 30)) as ui:
        panel = ui.app.query_one(Panel)
        await ui.asks("a", "one")
        assert panel.display != folded
        await ui.sees("61.2 tok/s" if folded else "token-identical")
        assert all(len(line) <= columns for line in ui.seen().splitlines())
        if folded:
            assert "61.2 tok/s · 2.7 tok/round · 2,016 of 32,768" in ui.status
            # and can be unfolded, over the conversation
            await ui.press("ctrl+s")
            await ui.sees("tok/s of each turn")
            await ui.press("ctrl+s")
            await ui.until(lambda: not panel.display)
        # the panel comes and goes with the width
        ui.app.slash("stats", "live")
        await ui.pilot.resize_terminal(150 if folded else 40, 30)
        await ui.until(lambda: panel.display == folded)
        await ui.sees("one")


@asynchronous
async def test_a_folded_panel_names_the_model_before_the_first_turn() -> None:
    async with running_app(options=ChatOptions("./model"), size=(80, 24)) as ui:
        await ui.sees("./model · qwen-mtp head · depth auto")


@asynchronous
async def test_a_terminal_may_be_tiny() -> None:
    async with running_app(size=(20, 6)) as ui:
        await ui.enter("hello")
        ui.engine.say(*answering("world " * 50))
        await ui.reach("ready")
        await ui.press("f1", "escape", "ctrl+s", "ctrl+s", "ctrl+p", "escape")
        await ui.pilot.resize_terminal(120, 40)
        await ui.sees("hello", "world")


@asynchronous
async def test_themes_change_while_an_answer_comes() -> None:
    async with running_app() as ui:
        await ui.enter("go")
        ui.engine.say(said("```python\nx = 'one'\n"))
        await ui.sees("x = 'one'")
        for theme in ("textual-light", "ansi-dark", "textual-dark"):
            if theme in ui.app.available_themes:
                ui.app.theme = theme
                await ui.pilot.pause()
        ui.engine.say(said("y = 'two'\n```\n"), finished("x"))
        await ui.sees("x = 'one'", "y = 'two'", "tok/round")
