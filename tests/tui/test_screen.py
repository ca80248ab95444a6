"""What the conversation looks like: as it comes, after it came, when it is long and when the terminal is narrow."""

from __future__ import annotations

import pytest
from mlxmtp_tui.conversation import Answer
from mlxmtp_tui.roles import Options
from mlxmtp_tui.sessions import Session
from mlxmtp_tui.widgets.panel import Panel
from mlxmtp_tui.widgets.transcript import MOUNTED, Earlier
from mlxmtp_tui.widgets.turns import Asked, Figures, Thinking, ToolCallBlock

from mlxmtp.worker.messages import Downloading, Failed, Finished, Generate, Load, PromptProgress, TurnDelta
from tests.tui.scripted import (
    MEMORY,
    Engines,
    answering,
    asynchronous,
    chatting,
    finished,
    loaded,
    message,
    said,
    saved_chat,
    stats,
)

CALLS = [("weather", {"city": "Zürich"}), ("time", {"zone": "CET"})]


# -- an answer that comes ---------------------------------------------------------------------------------------


@asynchronous
async def test_an_answer_of_all_kinds_of_parts_is_drawn_as_it_comes() -> None:
    async with chatting() as desk:
        await desk.enter("Weather?")
        await desk.sees("Weather?", "answering · esc stops")
        desk.engine.say(said("Which", "thinking"))
        await desk.sees("▸ thinking … (1 word)")
        desk.engine.say(said(" city?\n", "thinking"))
        await desk.sees("▸ thinking … (2 words)")
        assert "city" not in desk.seen(desk.app.query_one(Thinking)), "folded"
        desk.engine.say(said("\n\nLet me **lo"))
        await desk.sees("▸ thought (2 words)", "Let me")
        desk.engine.say(said("ok**:\n\n- one\n- tw"))
        await desk.sees("Let me look:", "• one")
        desk.engine.say(said("o\n\n```python\nx = 1"))
        await desk.sees("• two", "x = 1")
        desk.engine.say(said("\n```\n"))
        # two calls with nothing but an empty text between them, as engine/output.py says them
        first = TurnDelta(0, [["tool", '{"name": "wea'], ["tool", 'ther"}']], stats(40), MEMORY)
        second = TurnDelta(0, [["text", ""], ["tool", '{"name": "time"}']], stats(40), MEMORY)
        desk.engine.say(first)
        await desk.sees('⚒ {"name": "weather"}')
        desk.engine.say(second)
        await desk.until(lambda: len(desk.app.query(ToolCallBlock)) == 2, "two calls")
        desk.engine.say(Finished(0, "stop", message("Let me look", "Which city?", CALLS), stats(90), MEMORY))
        await desk.sees("⚒ weather(city='Zürich')", "⚒ time(zone='CET')", "90 tok · 61.2 tok/s · 2.7 tok/round")
        assert "```" not in desk.seen()
        assert '{"name"' not in desk.seen()


@asynchronous
async def test_calls_that_come_all_at_once_are_two_calls() -> None:
    async with chatting() as desk:
        await desk.enter("Weather?")
        parts = [["tool", "call one"], ["text", ""], ["tool", "call two"]]
        desk.engine.say(TurnDelta(0, parts, stats(40), MEMORY))
        desk.engine.say(Finished(0, "stop", message("", "", CALLS), stats(40), MEMORY))
        await desk.sees("⚒ weather(city='Zürich')", "⚒ time(zone='CET')")


@asynchronous
async def test_thinking_is_unfolded_by_a_click_and_stays_so_while_it_grows() -> None:
    async with chatting() as desk:
        await desk.enter("go")
        desk.engine.say(said("first thought", "thinking"))
        await desk.sees("▸ thinking … (2 words)")
        await desk.pilot.click(Thinking)
        await desk.sees("▾ thinking … (2 words)", "first thought")
        desk.engine.say(said(" and more", "thinking"))
        await desk.sees("first thought and more")
        desk.engine.say(finished("so", thinking="first thought and more"), said("late", "text"))
        await desk.sees("▾ thought (4 words)")
        await desk.pilot.click(Thinking)
        await desk.sees("▸ thought (4 words)")
        assert "first thought" not in desk.seen()


@asynchronous
async def test_a_turn_that_fails_says_so_and_keeps_what_came() -> None:
    async with chatting() as desk:
        await desk.enter("go")
        desk.engine.say(said("This much"))
        await desk.sees("This much")
        desk.engine.say(Failed(0, "memory", "[malloc] Unable to allocate"))
        await desk.sees("This much", "broken off")
        assert desk.errors == ["[malloc] Unable to allocate; try a smaller model or a shorter chat"]
        await desk.asks("next", "goes on")


@asynchronous
async def test_a_fast_answer_is_drawn_whole_and_once() -> None:
    """Nothing may get lost between what the chat knows and what the screen is about to draw."""
    text = "\n\n".join(f"paragraph {i}" for i in range(5))
    parts = [said(text[i : i + 3]) for i in range(0, len(text), 3)]
    async with chatting(size=(100, 60)) as desk:
        for key in (None, "ctrl+r", "ctrl+r"):
            desk.engine.on(Generate, [*parts, finished(text)])
            if key:
                await desk.press(key)
            else:
                await desk.enter("go")
            await desk.until(desk.drawn)
            await desk.sees("paragraph 4")
            assert [desk.seen().count(f"paragraph {i}") for i in range(5)] == [1] * 5
        assert len(desk.app.query(Figures)) == 1


@asynchronous
async def test_the_newest_line_is_followed_until_the_reader_scrolls() -> None:
    async with chatting(size=(80, 20)) as desk:
        transcript = desk.app.transcript
        assert transcript is not None
        await desk.enter("go")
        desk.engine.say(said("".join(f"line {i}\n\n" for i in range(40))))
        await desk.sees("line 39")
        await desk.press("pageup")
        await desk.until(lambda: "line 39" not in desk.seen())
        at = transcript.scroll_y
        desk.engine.say(said("".join(f"line {i}\n\n" for i in range(40, 60))))
        await desk.until(lambda: transcript.max_scroll_y > at + 40, "the rest")
        assert transcript.scroll_y == at
        await desk.press("ctrl+end")
        await desk.sees("line 59")
        desk.engine.say(said("the last line"))
        await desk.sees("the last line")


@asynchronous
async def test_reading_and_fetching_have_their_progress() -> None:
    engines = Engines({Load: []})
    async with chatting(engines, Options("owner/name"), status="loading") as desk:
        desk.engine.say(Downloading(0, "owner/name", 1_000_000_000, 4_000_000_000))
        await desk.sees("fetching owner/name", "25%", "1.0 GB of 4.0 GB")
        desk.engine.say(loaded("owner/name"))
        await desk.reach("ready")
        await desk.enter("go")
        desk.engine.say(PromptProgress(0, 512, 2_048))
        await desk.sees("reading  512 of 2,048 tokens", "25%")
        desk.engine.say(*answering("done"))
        await desk.sees("done")
        assert "reading" not in desk.seen()


@asynchronous
async def test_a_model_that_cannot_be_loaded_is_told_and_another_one_can_be() -> None:
    engines = Engines({Load: [Failed(0, "refused", "owner/name: config.json is missing")]})
    async with chatting(engines, Options("owner/name"), status="choosing") as desk:
        assert desk.errors == ["owner/name: config.json is missing"]
        await desk.sees("no model · /model chooses one")
        desk.engine.on(Load, [loaded()])
        await desk.enter("/model demo")
        await desk.reach("ready")


# -- a chat that was saved --------------------------------------------------------------------------------------


@asynchronous
async def test_a_resumed_chat_looks_as_it_did() -> None:
    session = Session.new("demo")
    session.asked("Weather?", "Weather?")
    session.answered(Answer(message("Let me **look**.", "Which city?", CALLS), "stop", stats(), 1.49))
    session.asked("And?", "And?")
    session.answered(Answer(message("It ends"), "length", stats(5)))
    session.asked("unanswered", "unanswered")
    session.close()
    async with chatting(resumed=Session.resume(session.file)) as desk:
        await desk.sees("Weather?", "Let me look.", "▸ thought (2 words)")
        await desk.sees("⚒ weather(city='Zürich')", "⚒ time(zone='CET')", "1.49× plain")
        await desk.sees("And?", "It ends", "token limit reached", "unanswered")
        assert "city?" not in desk.seen()
        await desk.press("ctrl+t")
        await desk.sees("▾ thought (2 words)", "Which city?")
        await desk.press("ctrl+s")
        await desk.sees("tok/s of each turn")
        # and it goes on: the question that has no answer is asked again
        desk.engine.on(Generate, answering("now"))
        await desk.press("ctrl+r")
        await desk.until(lambda: desk.turns[-1] == ("unanswered", "now"))
        roles = [one["role"] for one in desk.engine.sent(Generate)[0].messages]
        assert roles == ["user", "assistant", "user", "assistant", "user"]


@asynchronous
async def test_a_thousand_turns_are_mounted_a_few_at_a_time() -> None:
    file = saved_chat(1_000)
    async with chatting(resumed=Session.resume(file)) as desk:
        await desk.sees("question 1000", "answer 1000")
        assert len(desk.app.query(Asked)) == MOUNTED
        assert len(desk.turns) == 1_000
        await desk.press("ctrl+home")
        await desk.sees(f"▲ {1_000 - MOUNTED} earlier turns")
        await desk.pilot.click(Earlier)
        await desk.until(lambda: len(desk.app.query(Asked)) == 2 * MOUNTED)
        await desk.sees(f"question {1_000 - MOUNTED + 1} ")
        numbers = [int(asked.visual.plain.split()[1]) for asked in desk.app.query(Asked)]
        assert numbers == list(range(1_001 - 2 * MOUNTED, 1_001)), "in order, none twice"
        # new turns make room for themselves
        desk.engine.on(Generate, answering("new"))
        for i in range(3):
            await desk.enter(f"question {1_001 + i}")
            await desk.until(lambda i=i: desk.turns[-1] == (f"question {1_001 + i}", "new"))
        await desk.sees("question 1003")
        await desk.until(lambda: len(desk.app.query(Asked)) <= MOUNTED + 3)
        numbers = [int(asked.visual.plain.split()[1]) for asked in desk.app.query(Asked)]
        assert numbers == list(range(numbers[0], 1_004))
        await desk.press("ctrl+home")
        await desk.sees(f"▲ {numbers[0] - 1} earlier turns")
        assert [one["content"] for one in desk.engine.sent(Generate)[0].messages][:2] == ["question 1", "answer 1"]


@asynchronous
async def test_a_long_question_is_folded_until_it_is_clicked() -> None:
    async with chatting(size=(100, 60)) as desk:
        await desk.asks("\n".join(f"line {i}" for i in range(30)), "ok")
        await desk.sees("line 15", "… 14 more lines", "ok")
        assert "line 16" not in desk.seen()
        await desk.pilot.click(Asked)
        await desk.sees("line 16", "line 29")


# -- narrow and wide --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("columns", "folded"), [(40, True), (60, True), (99, True), (100, False), (150, False)])
@asynchronous
async def test_the_panel_folds_to_a_line_in_a_narrow_terminal(columns: int, folded: bool) -> None:
    async with chatting(size=(columns, 30)) as desk:
        panel = desk.app.query_one(Panel)
        await desk.asks("a", "one")
        assert panel.display != folded
        await desk.sees("61.2 tok/s" if folded else "token-identical")
        assert all(len(line) <= columns for line in desk.seen().splitlines())
        if folded:
            assert "61.2 tok/s · 2.7 tok/round · 2,016 of 32,768" in desk.status
            # and can be unfolded, over the conversation
            await desk.press("ctrl+s")
            await desk.sees("tok/s of each turn")
            await desk.press("ctrl+s")
            await desk.until(lambda: not panel.display)
        # the panel comes and goes with the width
        desk.app.slash("stats", "live")
        await desk.pilot.resize_terminal(150 if folded else 40, 30)
        await desk.until(lambda: panel.display == folded)
        await desk.sees("one")


@asynchronous
async def test_a_folded_panel_names_the_model_before_the_first_turn() -> None:
    async with chatting(options=Options("./model"), size=(80, 24)) as desk:
        await desk.sees("./model · qwen-mtp head · depth auto")


@asynchronous
async def test_a_terminal_may_be_tiny() -> None:
    async with chatting(size=(20, 6)) as desk:
        await desk.enter("hello")
        desk.engine.say(*answering("world " * 50))
        await desk.reach("ready")
        await desk.press("f1", "escape", "ctrl+s", "ctrl+s", "ctrl+p", "escape")
        await desk.pilot.resize_terminal(120, 40)
        await desk.sees("hello", "world")


@asynchronous
async def test_themes_change_while_an_answer_comes() -> None:
    async with chatting() as desk:
        await desk.enter("go")
        desk.engine.say(said("```python\nx = 'one'\n"))
        await desk.sees("x = 'one'")
        for theme in ("textual-light", "ansi-dark", "textual-dark"):
            if theme in desk.app.available_themes:
                desk.app.theme = theme
                await desk.pilot.pause()
        desk.engine.say(said("y = 'two'\n```\n"), finished("x"))
        await desk.sees("x = 'one'", "y = 'two'", "tok/round")
