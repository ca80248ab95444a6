"""Every key does what the help says, in the application itself."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
from mlxmtp_tui import history
from mlxmtp_tui.app import ChatApp
from mlxmtp_tui.roles import Options
from mlxmtp_tui.screens.help import KEYS, Help
from mlxmtp_tui.widgets.prompt import LARGE_PASTE, Completions
from mlxmtp_tui.widgets.turns import Asked, Thinking
from textual import events
from textual.command import CommandPalette
from textual.content import Content

from mlxmtp.worker.messages import Compare, Generate, Load
from tests.tui.scripted import (
    Desk,
    Engines,
    answering,
    asynchronous,
    chatting,
    compared,
    finished,
    loaded,
    said,
    saved_chat,
)

# -- typing and sending -----------------------------------------------------------------------------------------


@asynchronous
async def test_enter_sends_and_four_ways_make_a_new_line() -> None:
    async with chatting() as desk:
        await desk.press("enter", "space", "enter")
        assert desk.turns == [], "nothing is no message"
        assert desk.prompt.text == ""
        await desk.press("a", "ctrl+j", "b", "shift+enter", "c", "alt+enter", "d", "\\", "enter", "e")
        assert desk.prompt.text == "a\nb\nc\nd\ne"
        assert desk.turns == []
        desk.engine.on(Generate, answering("yes"))
        await desk.press("enter")
        assert [typed for typed, _ in desk.turns] == ["a\nb\nc\nd\ne"]
        assert desk.prompt.text == ""
        await desk.sees("▌ a", "▌ e", "yes", "tok/s")
        # a backslash in the middle of a line is one, and the rest of the line goes down
        await desk.write("left\\right")
        await desk.press(*["left"] * 5, "enter")
        assert desk.prompt.text == "left\nright"


@asynchronous
async def test_emoji_and_cjk_are_typed_sent_and_shown() -> None:
    async with chatting() as desk:
        await desk.press("日", "本", "🎈", "é")
        assert desk.prompt.text == "日本🎈é"
        await desk.sees("日本🎈é")
        await desk.press("left", "backspace")
        assert desk.prompt.text == "日本é"
        desk.engine.on(Generate, answering("好的 👍 *ja*"))
        await desk.press("enter")
        await desk.sees("日本é", "好的 👍 ja")
        assert desk.engine.sent(Generate)[0].messages[-1]["content"] == "日本é"


@asynchronous
async def test_what_looks_like_markup_is_text_everywhere() -> None:
    odd = "[bold]x[/bold] [/] [link='a'] [1]"
    async with chatting(options=Options(odd)) as desk:
        await desk.asks(odd, f"`{odd}`")
        await desk.until(lambda: desk.seen().count("[bold]x[/bold] [/] [link='a'] [1]") >= 2)
        await desk.enter(f"/temp {odd}")
        assert odd in desk.errors[-1]
        desk.engine.on(Generate, [])
        await desk.enter("/retry")
        desk.engine.say(said(odd, "thinking"), said(odd, "tool"))
        await desk.sees("⚒ [bold]x[/bold] [/]")
        await desk.press("ctrl+t")
        await desk.sees("▾", "[bold]x[/bold] [/] [link='a'] [1]")


@asynchronous
async def test_a_large_paste_is_a_mark_on_the_screen_and_whole_in_what_is_sent() -> None:
    text = "".join(f"line {i} of what was pasted\r\n" for i in range(8_000))
    assert len(text) > 200_000
    expected = text.replace("\r\n", "\n")
    async with chatting() as desk:
        await desk.write("Look: ")
        await desk.paste(text)
        assert len(desk.prompt.text) < 100
        await desk.sees(f"[pasted {len(expected):,} characters #1]")
        await desk.paste("x" * (LARGE_PASTE + 1))
        await desk.paste("a small one\r\nof two lines")
        assert desk.prompt.text.endswith("#2]a small one\nof two lines")
        desk.engine.on(Generate, answering("long"))
        await desk.press("enter")
        sent = desk.engine.sent(Generate)[0].messages[-1]["content"]
        assert sent == f"Look: {expected}{'x' * (LARGE_PASTE + 1)}a small one\nof two lines"
        # it is folded in the conversation, too, until it is clicked
        await desk.sees("more lines", "long")
        assert "line 1000 of" not in desk.seen()
        asked = desk.app.query_one(Asked)
        assert len(asked.visual.plain if isinstance(asked.visual, Content) else "") < 3_000


@asynchronous
async def test_a_large_paste_that_is_not_taken_comes_back_as_its_mark() -> None:
    """The whole of it in the prompt would hold up every key that follows."""
    async with chatting() as desk:
        await desk.enter("first")
        await desk.paste("y" * 200_000)
        await desk.press("enter")
        assert len(desk.prompt.text) < 100
        desk.engine.say(*answering("done"))
        await desk.reach("ready")
        await desk.press("enter")
        assert desk.engine.sent(Generate)[-1].messages[-1]["content"] == "y" * 200_000


@asynchronous
async def test_ctrl_d_leaves_from_an_empty_prompt_only() -> None:
    async with chatting() as desk:
        await desk.press("a", "b", "left", "left", "ctrl+d")
        assert desk.prompt.text == "b"
        assert desk.app.is_running
        await desk.press("delete")
        await desk.press("ctrl+d")
        await desk.leaves()
    assert desk.engine.closed


# -- the history ------------------------------------------------------------------------------------------------


@asynchronous
async def test_up_and_down_walk_the_earlier_prompts_and_keep_the_draft() -> None:
    async with chatting() as desk:
        for text in ("one", "two\nlines", "three"):
            await desk.asks(text, "ok")
        await desk.write("draft")
        texts = []
        for key in ("up", "up", "up", "up", "up"):
            await desk.press(key)
            texts.append(desk.prompt.text)
        assert texts == ["three", "two\nlines", "one", "one", "one"]
        texts = []
        for key in ("down", "down", "down", "down", "down"):
            await desk.press(key)
            texts.append(desk.prompt.text)
        assert texts[0] == "two\nlines"
        assert texts[-2:] == ["draft", "draft"]
        assert "three" in texts
        await desk.press("up", "!")
        await desk.press("enter")
        assert desk.turns[-1][0] == "!three", "the cursor went to the beginning, where up goes on"


@asynchronous
async def test_in_the_middle_of_several_lines_up_and_down_move_the_cursor() -> None:
    async with chatting() as desk:
        await desk.asks("earlier", "ok")
        await desk.write("first\nsecond")
        await desk.press("up")
        assert desk.prompt.text == "first\nsecond"
        assert desk.prompt.cursor_location[0] == 0
        await desk.press("up")
        assert desk.prompt.text == "earlier"
        await desk.press("down")
        assert desk.prompt.text == "first\nsecond"


@asynchronous
async def test_what_was_typed_in_earlier_chats_is_in_the_history_of_the_next() -> None:
    async with chatting() as desk:
        await desk.asks("a question", "ok")
        await desk.enter("/temp 0.5")
    async with chatting() as desk:
        await desk.press("up")
        assert desk.prompt.text == "/temp 0.5", "commands too"
        desk.prompt.fill("")
        assert history.load() == ["a question", "/temp 0.5"]


@asynchronous
async def test_prompts_that_end_in_what_could_be_completed_do_not_stop_the_walk(home: Path) -> None:
    (home / "notes.txt").touch()
    (home / "notes.txt.bak").touch()
    async with chatting() as desk:
        for text in ("one", "see @notes.txt", "/stats", "three"):
            await desk.enter(text)
            if not text.startswith("/"):
                desk.engine.say(*answering("ok"))
                await desk.reach("ready")
        texts = []
        for _ in range(4):
            await desk.press("up")
            texts.append(desk.prompt.text)
        assert texts == ["three", "/stats", "see @notes.txt", "one"]


# -- completion -------------------------------------------------------------------------------------------------


@asynchronous
async def test_commands_are_completed_by_tab_and_carried_out_by_enter() -> None:
    async with chatting() as desk:
        await desk.press("/")
        assert desk.choices[:2] == ["/help", "/model"]
        await desk.sees("/help", "keys and commands")
        await desk.press("s", "t")
        assert desk.choices == ["/stats"]
        await desk.press("tab")
        assert desk.prompt.text == "/stats "
        assert desk.choices == []
        await desk.press("t", "u", "r", "n", "s", "enter")
        assert desk.app.stats_view == "turns"
        assert desk.prompt.text == ""
        # the one under the bar is carried out at once
        await desk.press("/", "s", "down", "down")
        assert desk.choices == ["/system", "/seed", "/stats", "/save"]
        await desk.press("enter")
        assert desk.app.stats_view == "line"
        assert desk.turns == []
        # nothing to complete: nothing happens, and the prompt keeps the keys
        await desk.press("x", "tab", "y")
        assert desk.prompt.text == "xy"


@asynchronous
async def test_esc_closes_the_choices_and_stops_nothing() -> None:
    async with chatting() as desk:
        await desk.enter("go")
        await desk.press("/", "escape")
        assert desk.choices == []
        assert desk.chat.live.status == "answering"
        assert desk.prompt.text == "/"
        await desk.press("escape")
        await desk.reach("ready")
        assert desk.prompt.text == "/"


@asynchronous
async def test_commands_are_offered_at_the_beginning_only() -> None:
    async with chatting() as desk:
        for text in ("say /h", "/model /m", "first\n/h", "//h"):
            desk.prompt.fill(text)
            await desk.pilot.pause()
            assert desk.choices == [], text


@asynchronous
async def test_paths_are_completed_folder_by_folder_and_enter_does_not_send_them_yet(home: Path) -> None:
    (home / "my files").mkdir()
    (home / "my files" / "a b.txt").write_text("found it")
    (home / "src").mkdir()
    (home / "src" / "main.py").write_text("print()")
    async with chatting() as desk:
        desk.engine.on(Generate, answering("ok"))
        await desk.write("see @")
        assert desk.choices == ['@"my files/', "@src/"]
        await desk.press("s", "tab")
        assert desk.prompt.text == "see @src/"
        assert desk.choices == ["@src/main.py"]
        await desk.press("enter")
        assert desk.prompt.text == "see @src/main.py "
        assert desk.turns == []
        await desk.write("and @my")
        await desk.press("tab")
        assert desk.choices == ['@"my files/a b.txt"']
        await desk.press("tab")
        assert desk.prompt.text == 'see @src/main.py and @"my files/a b.txt" '
        await desk.press("enter")
        sent = desk.engine.sent(Generate)[0].messages[-1]["content"]
        assert "print()" in sent
        assert "found it" in sent
        await desk.sees('see @src/main.py and @"my files/a b.txt"')
        assert "found it" not in desk.seen(), "the conversation shows what was typed"


@asynchronous
async def test_a_name_that_is_whole_is_sent_as_it_is(home: Path) -> None:
    (home / "notes.txt").write_text("mine")
    (home / "notes.txt.bak").write_text("not mine")
    async with chatting() as desk:
        await desk.write("@notes.txt")
        await desk.press("enter")
        assert [typed.strip() for typed, _ in desk.turns] == ["@notes.txt"]


@asynchronous
async def test_names_with_brackets_are_offered_as_they_are(home: Path) -> None:
    for name in ("[id].tsx", "[bold]x", "[/red]"):
        (home / name.replace("/", "_")).touch()
    async with chatting() as desk:
        await desk.press("@", "[")
        await desk.sees("@[id].tsx", "@[bold]x", "@[_red]")


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
