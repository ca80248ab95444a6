"""Typing, the history and completion, in the application itself."""

from __future__ import annotations

from pathlib import Path

from mlxmtp_tui import history
from mlxmtp_tui.roles import Options
from mlxmtp_tui.widgets.prompt import LARGE_PASTE
from mlxmtp_tui.widgets.turns import Asked
from textual.content import Content

from mlxmtp.worker.messages import Generate
from tests.tui.scripted import answering, asynchronous, chatting, said

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
