"""Typing, the history and completion, in the application itself."""

from __future__ import annotations

from pathlib import Path

from mlxmtp_tui import history
from mlxmtp_tui.options import ChatOptions
from mlxmtp_tui.widgets.prompt import LARGE_PASTE
from mlxmtp_tui.widgets.turns import UserMessage
from textual.content import Content

from mlxmtp.worker.messages import Generate
from tests.tui.harness import answering, asynchronous, running_app, said

# -- typing and sending -----------------------------------------------------------------------------------------


@asynchronous
async def test_enter_sends_and_four_ways_make_a_new_line() -> None:
    async with running_app() as ui:
        await ui.press("enter", "space", "enter")
        assert ui.turns == [], "nothing is no message"
        assert ui.prompt.text == ""
        await ui.press("a", "ctrl+j", "b", "shift+enter", "c", "alt+enter", "d", "\\", "enter", "e")
        assert ui.prompt.text == "a\nb\nc\nd\ne"
        assert ui.turns == []
        ui.engine.on(Generate, answering("yes"))
        await ui.press("enter")
        assert [typed for typed, _ in ui.turns] == ["a\nb\nc\nd\ne"]
        assert ui.prompt.text == ""
        await ui.sees("▌ a", "▌ e", "yes", "tok/s")
        # a backslash in the middle of a line is one, and the rest of the line goes down
        await ui.write("left\\right")
        await ui.press(*["left"] * 5, "enter")
        assert ui.prompt.text == "left\nright"


@asynchronous
async def test_emoji_and_cjk_are_typed_sent_and_shown() -> None:
    async with running_app() as ui:
        await ui.press("日", "本", "🎈", "é")
        assert ui.prompt.text == "日本🎈é"
        await ui.sees("日本🎈é")
        await ui.press("left", "backspace")
        assert ui.prompt.text == "日本é"
        ui.engine.on(Generate, answering("好的 👍 *ja*"))
        await ui.press("enter")
        await ui.sees("日本é", "好的 👍 ja")
        assert ui.engine.sent(Generate)[0].messages[-1]["content"] == "日本é"


@asynchronous
async def test_what_looks_like_markup_is_text_everywhere() -> None:
    odd = "[bold]x[/bold] [/] [link='a'] [1]"
    async with running_app(options=ChatOptions(odd)) as ui:
        await ui.asks(odd, f"`{odd}`")
        await ui.until(lambda: ui.seen().count("[bold]x[/bold] [/] [link='a'] [1]") >= 2)
        await ui.enter(f"/temp {odd}")
        assert odd in ui.errors[-1]
        ui.engine.on(Generate, [])
        await ui.enter("/retry")
        ui.engine.say(said(odd, "thinking"), said(odd, "tool"))
        await ui.sees("⚒ [bold]x[/bold] [/]")
        await ui.press("ctrl+t")
        await ui.sees("▾", "[bold]x[/bold] [/] [link='a'] [1]")


@asynchronous
async def test_a_large_paste_is_a_mark_on_the_screen_and_whole_in_what_is_sent() -> None:
    text = "".join(f"line {i} of what was pasted\r\n" for i in range(8_000))
    assert len(text) > 200_000
    expected = text.replace("\r\n", "\n")
    async with running_app() as ui:
        await ui.write("Look: ")
        await ui.paste(text)
        assert len(ui.prompt.text) < 100
        await ui.sees(f"[pasted {len(expected):,} characters #1]")
        await ui.paste("x" * (LARGE_PASTE + 1))
        await ui.paste("a small one\r\nof two lines")
        assert ui.prompt.text.endswith("#2]a small one\nof two lines")
        ui.engine.on(Generate, answering("long"))
        await ui.press("enter")
        sent = ui.engine.sent(Generate)[0].messages[-1]["content"]
        assert sent == f"Look: {expected}{'x' * (LARGE_PASTE + 1)}a small one\nof two lines"
        # it is folded in the conversation, too, until it is clicked
        await ui.sees("more lines", "long")
        assert "line 1000 of" not in ui.seen()
        asked = ui.app.query_one(UserMessage)
        assert len(asked.visual.plain if isinstance(asked.visual, Content) else "") < 3_000


@asynchronous
async def test_a_large_paste_that_is_not_taken_comes_back_as_its_mark() -> None:
    """The whole of it in the prompt would hold up every key that follows."""
    async with running_app() as ui:
        await ui.enter("first")
        await ui.paste("y" * 200_000)
        await ui.press("enter")
        assert len(ui.prompt.text) < 100
        ui.engine.say(*answering("done"))
        await ui.reach("ready")
        await ui.press("enter")
        assert ui.engine.sent(Generate)[-1].messages[-1]["content"] == "y" * 200_000


@asynchronous
async def test_ctrl_d_leaves_from_an_empty_prompt_only() -> None:
    async with running_app() as ui:
        await ui.press("a", "b", "left", "left", "ctrl+d")
        assert ui.prompt.text == "b"
        assert ui.app.is_running
        await ui.press("delete")
        await ui.press("ctrl+d")
        await ui.leaves()
    assert ui.engine.closed


# -- the history ------------------------------------------------------------------------------------------------


@asynchronous
async def test_up_and_down_walk_the_earlier_prompts_and_keep_the_draft() -> None:
    async with running_app() as ui:
        for text in ("one", "two\nlines", "three"):
            await ui.asks(text, "ok")
        await ui.write("draft")
        texts = []
        for key in ("up", "up", "up", "up", "up"):
            await ui.press(key)
            texts.append(ui.prompt.text)
        assert texts == ["three", "two\nlines", "one", "one", "one"]
        texts = []
        for key in ("down", "down", "down", "down", "down"):
            await ui.press(key)
            texts.append(ui.prompt.text)
        assert texts[0] == "two\nlines"
        assert texts[-2:] == ["draft", "draft"]
        assert "three" in texts
        await ui.press("up", "!")
        await ui.press("enter")
        assert ui.turns[-1][0] == "!three", "the cursor went to the beginning, where up goes on"


@asynchronous
async def test_in_the_middle_of_several_lines_up_and_down_move_the_cursor() -> None:
    async with running_app() as ui:
        await ui.asks("earlier", "ok")
        await ui.write("first\nsecond")
        await ui.press("up")
        assert ui.prompt.text == "first\nsecond"
        assert ui.prompt.cursor_location[0] == 0
        await ui.press("up")
        assert ui.prompt.text == "earlier"
        await ui.press("down")
        assert ui.prompt.text == "first\nsecond"


@asynchronous
async def test_what_was_typed_in_earlier_chats_is_in_the_history_of_the_next() -> None:
    async with running_app() as ui:
        await ui.asks("a question", "ok")
        await ui.enter("/temp 0.5")
    async with running_app() as ui:
        await ui.press("up")
        assert ui.prompt.text == "/temp 0.5", "commands too"
        ui.prompt.fill("")
        assert history.load() == ["a question", "/temp 0.5"]


@asynchronous
async def test_prompts_that_end_in_what_could_be_completed_do_not_stop_the_walk(home: Path) -> None:
    (home / "notes.txt").touch()
    (home / "notes.txt.bak").touch()
    async with running_app() as ui:
        for text in ("one", "see @notes.txt", "/stats", "three"):
            await ui.enter(text)
            if not text.startswith("/"):
                ui.engine.say(*answering("ok"))
                await ui.reach("ready")
        texts = []
        for _ in range(4):
            await ui.press("up")
            texts.append(ui.prompt.text)
        assert texts == ["three", "/stats", "see @notes.txt", "one"]


# -- completion -------------------------------------------------------------------------------------------------


@asynchronous
async def test_commands_are_completed_by_tab_and_carried_out_by_enter() -> None:
    async with running_app() as ui:
        await ui.press("/")
        assert ui.choices[:2] == ["/help", "/model"]
        await ui.sees("/help", "keys and commands")
        await ui.press("s", "t")
        assert ui.choices == ["/stats"]
        await ui.press("tab")
        assert ui.prompt.text == "/stats "
        assert ui.choices == ["live", "turns", "line"]
        await ui.press("t", "u", "r", "n", "s", "enter")
        assert ui.app.stats_view == "turns"
        assert ui.prompt.text == ""
        # the one under the bar is carried out at once
        await ui.press("/", "s", "down", "down")
        assert ui.choices == ["/system", "/seed", "/stats", "/save"]
        await ui.press("enter")
        assert ui.app.stats_view == "line"
        assert ui.turns == []
        # nothing to complete: nothing happens, and the prompt keeps the keys
        await ui.press("x", "tab", "y")
        assert ui.prompt.text == "xy"


@asynchronous
async def test_esc_closes_the_choices_and_stops_nothing() -> None:
    async with running_app() as ui:
        await ui.enter("go")
        await ui.press("/", "escape")
        assert ui.choices == []
        assert ui.chat.state.status == "answering"
        assert ui.prompt.text == "/"
        await ui.press("escape")
        await ui.reach("ready")
        assert ui.prompt.text == "/"


@asynchronous
async def test_commands_are_offered_at_the_beginning_only() -> None:
    async with running_app() as ui:
        for text in ("say /h", "/model /m", "first\n/h", "//h"):
            ui.prompt.fill(text)
            await ui.pilot.pause()
            assert ui.choices == [], text


@asynchronous
async def test_paths_are_completed_folder_by_folder_and_enter_does_not_send_them_yet(home: Path) -> None:
    (home / "my files").mkdir()
    (home / "my files" / "a b.txt").write_text("found it")
    (home / "src").mkdir()
    (home / "src" / "main.py").write_text("print()")
    async with running_app() as ui:
        ui.engine.on(Generate, answering("ok"))
        await ui.write("see @")
        assert ui.choices == ['@"my files/', "@src/"]
        await ui.press("s", "tab")
        assert ui.prompt.text == "see @src/"
        assert ui.choices == ["@src/main.py"]
        await ui.press("enter")
        assert ui.prompt.text == "see @src/main.py "
        assert ui.turns == []
        await ui.write("and @my")
        await ui.press("tab")
        assert ui.choices == ['@"my files/a b.txt"']
        await ui.press("tab")
        assert ui.prompt.text == 'see @src/main.py and @"my files/a b.txt" '
        await ui.press("enter")
        sent = ui.engine.sent(Generate)[0].messages[-1]["content"]
        assert "print()" in sent
        assert "found it" in sent
        await ui.sees('see @src/main.py and @"my files/a b.txt"')
        assert "found it" not in ui.seen(), "the conversation shows what was typed"


@asynchronous
async def test_a_name_that_is_whole_is_sent_as_it_is(home: Path) -> None:
    (home / "notes.txt").write_text("mine")
    (home / "notes.txt.bak").write_text("not mine")
    async with running_app() as ui:
        await ui.write("@notes.txt")
        await ui.press("enter")
        assert [typed.strip() for typed, _ in ui.turns] == ["@notes.txt"]


@asynchronous
async def test_names_with_brackets_are_offered_as_they_are(home: Path) -> None:
    for name in ("[id].tsx", "[bold]x", "[/red]"):
        (home / name.replace("/", "_")).touch()
    async with running_app() as ui:
        await ui.press("@", "[")
        await ui.sees("@[id].tsx", "@[bold]x", "@[_red]")
