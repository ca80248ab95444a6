"""Every slash command, with arguments that are good, missing and wrong."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from mlxmtp_tui import commands
from mlxmtp_tui.options import ChatOptions
from mlxmtp_tui.screens.help import HelpScreen
from mlxmtp_tui.screens.picker import ModelPicker
from mlxmtp_tui.sessions import read, saved
from mlxmtp_tui.widgets.turns import UserMessage

from mlxmtp.engine.request import GenerationOptions
from mlxmtp.worker.messages import Compare, Generate, Load
from tests.tui.harness import (
    AppHarness,
    Engines,
    answering,
    asynchronous,
    compared,
    headless,
    loaded,
    running_app,
    said,
    saved_chat,
)

CODE = "Two:\n\n```python\nx = 1\n```\n\nand\n\n```\ny\n```\n"


async def carry_out(ui: AppHarness, text: str) -> str:
    """What the user is told of a command, by enter's own way but for the key."""
    before = len(ui.notices)
    found = commands.parse(text)
    assert found is not None, text
    ui.app.slash(*found)
    await ui.pilot.pause()
    assert len(ui.notices) <= before + 1, ui.notices[before:]
    return ": ".join(ui.notices[-1]) if len(ui.notices) > before else ""


# -- settings ---------------------------------------------------------------------------------------------------


@asynchronous
async def test_settings_are_set_shown_and_used_by_the_next_turn() -> None:
    async with running_app() as ui:
        for text, told, changed in (
            ("/depth", "depth auto", {}),
            ("/depth 2", "", {"depth": 2}),
            ("/depth", "depth 2", {}),
            ("/depth auto", "", {"depth": None}),
            ("/depth 0", "", {"depth": 0}),
            ("/temp", "temperature 0", {}),
            ("/temp .5", "temperature 0.5", {"temperature": 0.5}),
            ("/temp 0", "temperature 0", {"temperature": 0.0}),
            ("/temp 1e-6", "temperature 1e-06", {"temperature": 1e-6}),
            ("/seed", "no seed", {}),
            ("/seed 18446744073709551615", "seed 18446744073709551615", {"seed": 2**64 - 1}),
            ("/seed", "seed 18446744073709551615", {}),
            ("/seed off", "no seed", {"seed": None}),
            ("/seed 0", "seed 0", {"seed": 0}),
            ("/max", "at most 4,096 tokens an answer", {}),
            ("/max 10000", "at most 10,000 tokens an answer", {"max_tokens": 10_000}),
            ("/think", "thinking auto", {}),
            ("/think on", "thinking on", {"thinking": True}),
            ("/think off", "thinking off", {"thinking": False}),
            ("/think auto", "thinking auto", {"thinking": None}),
            ("/think off", "thinking off", {"thinking": False}),
        ):
            before = ui.chat.settings
            assert await carry_out(ui, text) == (f"information: {told}" if told else ""), text
            for name, value in vars(ui.chat.settings).items():
                assert value == changed.get(name, getattr(before, name)), (text, name)
        await ui.sees("depth 0, plain: you set it", "plain decoding")
        await ui.enter("go")
        assert ui.engine.sent(Generate)[0].settings == GenerationOptions(
            temperature=1e-6, depth=0, seed=0, max_tokens=10_000, thinking=False
        )


@asynchronous
async def test_wrong_arguments_are_told_and_change_nothing() -> None:
    async with running_app() as ui:
        await ui.asks("a", CODE)
        before = ui.chat.settings
        for text, told in (
            ("/depth x", "depth is 'x'; expected a whole number from 0 to 16"),
            ("/depth -1", "depth is '-1'"),
            ("/depth 17", "depth is '17'"),
            ("/depth 1.5", "depth is '1.5'"),
            ("/depth ²", "depth is '²'"),
            ("/temp x", "temp is 'x'; expected 0 (greedy) or a number"),
            ("/temp -1", "temp is '-1'"),
            ("/temp 100", "temp is '100'"),
            ("/temp nan", "temp is 'nan'"),
            ("/temp inf", "temp is 'inf'"),
            ("/temp 1e-9", "temp is '1e-9'"),
            ("/seed x", "seed is 'x'"),
            ("/seed -1", "seed is '-1'"),
            ("/seed 18446744073709551616", "seed is '18446744073709551616'"),
            ("/max 0", "max is '0'; expected a whole number from 1"),
            ("/max many", "max is 'many'"),
            ("/think maybe", "/think maybe: expected on, off, auto or show"),
            ("/stats all", "/stats all: expected live, turns, line"),
            ("/copy words", "/copy words: expected /copy, /copy code or /copy code N"),
            ("/copy code 3", "code block is '3'; expected a whole number from 1 to 2"),
            ("/copy code x", "code block is 'x'"),
            ("/copy code 0", "code block is '0'"),
            ("/load nothing", "no saved chat is called 'nothing'"),
            ("/load ~nosuchuser", "no saved chat is called '~nosuchuser'"),
            ("/nonsense", "there is no command /nonsense"),
        ):
            assert (await carry_out(ui, text)).startswith(f"error: {told}"), text
        assert ui.chat.settings == before
        assert ui.app.stats_view == "live"
        assert len(ui.turns) == 1


@asynchronous
async def test_a_model_without_a_head_or_thinking_says_so() -> None:
    engines = Engines({Load: [headless()]})
    async with running_app(engines) as ui:
        assert await carry_out(ui, "/depth 2") == "error: depth 2 needs a head: the checkpoint has no head"
        assert await carry_out(ui, "/depth 0") == ""
        assert await carry_out(ui, "/think on") == "information: thinking on; this model has no thinking mode"


@asynchronous
async def test_the_same_command_twice_is_answered_twice() -> None:
    async with running_app() as ui:
        assert await carry_out(ui, "/temp") == await carry_out(ui, "/temp") == "information: temperature 0"


@asynchronous
async def test_the_system_prompt_is_set_shown_and_taken_away() -> None:
    async with running_app() as ui:
        ui.engine.on(Generate, answering("ok"))
        assert "there is no system prompt" in await carry_out(ui, "/system")
        await ui.enter("/system You are\nbrief.")
        assert await carry_out(ui, "/system") == "information: You are\nbrief."
        await ui.asks("a", "ok")
        await carry_out(ui, "/clear")
        await ui.asks("b", "ok")
        assert await carry_out(ui, "/system off") == "information: no system prompt any more"
        await ui.asks("c", "ok")
        prompts = [one.messages[0]["content"] for one in ui.engine.sent(Generate)]
        assert prompts == ["You are\nbrief.", "You are\nbrief.", "b"]
        assert read(ui.chat.log.session.file)[1].system == ""


# -- the chat ---------------------------------------------------------------------------------------------------


@asynchronous
async def test_model_loads_another_one_and_says_which() -> None:
    async with running_app() as ui:
        await ui.asks("a", "one")
        ui.engine.on(Load, [])
        await ui.enter("/model owner/a model")
        assert ui.engine.sent(Load)[-1].model == "owner/a model"
        await ui.sees("loading owner/a model …", "no model is loaded")
        await ui.enter("next")
        ui.engine.on(Generate, answering("from the other"))
        ui.engine.say(loaded("owner/a model"))
        await ui.sees("from the other", "owner/a model")
        ui.engine.on(Load, [loaded()])
        await ui.enter("/model demo")
        assert ui.engine.sent(Load)[-1].model is None
        await ui.reach("ready")
        await ui.enter("/model")
        assert isinstance(ui.app.screen, ModelPicker)


@asynchronous
async def test_clear_begins_a_new_chat_and_the_old_one_stays_saved() -> None:
    async with running_app() as ui:
        await ui.asks("a", "one")
        first = ui.chat.log.session.file
        ui.engine.on(Generate, [])
        await ui.enter("b")
        ui.engine.say(said("half"))
        await ui.sees("half")
        await ui.enter("/clear")
        assert ui.turns == []
        await ui.until(lambda: not ui.app.query(UserMessage))
        await ui.sees("Type a message")
        assert "half" not in ui.seen()
        answers = [turn.answer.text for turn in read(first)[1].turns if turn.answer]
        assert answers == ["one", "half"]
        await ui.asks("new", "fresh")
        assert ui.chat.log.session.file != first
        await ui.enter("/new")
        assert ui.turns == []


@asynchronous
async def test_bench_shows_how_it_goes_and_what_came_of_it() -> None:
    async with running_app() as ui:
        await ui.asks("a", "one")
        await ui.enter("/bench")
        ui.engine.say(compared(96))
        await ui.sees("measuring · esc stops", "mlx-lm plain, then MTP", "33%")
        assert await carry_out(ui, "/bench") == "information: not now; esc stops what runs"
        ui.engine.say(compared())
        await ui.sees("Measured on this chat, 3 runs each", "1.49× plain (41.0 tok/s)")
        assert len(ui.engine.sent(Compare)) == 1
        # one that is stopped leaves nothing
        await ui.enter("/bench")
        await ui.press("escape")
        await ui.reach("ready")
        await ui.sees("1.49× plain")
        assert ui.turns == [("a", "one")]


@asynchronous
async def test_retry_and_edit_are_what_their_keys_are() -> None:
    async with running_app() as ui:
        await ui.asks("a", "one")
        ui.engine.on(Generate, answering("two"))
        await ui.enter("/retry")
        await ui.sees("two")
        ui.engine.on(Generate, answering("three"))
        await ui.enter("/regenerate")
        await ui.sees("three")
        assert ui.turns == [("a", "three")]
        await ui.enter("/edit")
        assert ui.prompt.text == "a"
        assert ui.turns == []


@asynchronous
async def test_copy_takes_the_answer_or_one_of_its_code_blocks(clipboard: list[str]) -> None:
    async with running_app() as ui:
        assert await carry_out(ui, "/copy") == "error: there is no answer to copy yet"
        await ui.asks("a", CODE)
        for text in ("/copy", "/copy code", "/copy code 1", "/copy code  2 "):
            assert await carry_out(ui, text) == "information: copied", text
        assert [text.rstrip("\n") for text in clipboard] == [CODE.rstrip("\n"), "y", "x = 1", "y"]
        await ui.asks("b", "no code")
        assert await carry_out(ui, "/copy code") == "error: there is no code block in the last answer"
        assert len(clipboard) == 4


@asynchronous
async def test_think_show_is_what_ctrl_t_is() -> None:
    async with running_app() as ui:
        ui.engine.on(Generate, [said("why?", "thinking"), *answering("so")])
        await ui.enter("a")
        await ui.sees("▸ thought (1 word)", "so")
        await ui.enter("/think show")
        await ui.sees("▾ thought (1 word)", "why?")


@asynchronous
async def test_stats_takes_a_view_or_the_next_one() -> None:
    async with running_app() as ui:
        for text, view in (("/stats line", "line"), ("/stats", "live"), ("/stats turns", "turns"), ("/stats", "line")):
            assert await carry_out(ui, text) == ""
            assert ui.app.stats_view == view


# -- files ------------------------------------------------------------------------------------------------------


@asynchronous
async def test_save_names_the_chat_and_tells_where_it_is(chats: Path) -> None:
    async with running_app() as ui:
        await ui.asks("a", "one")
        told = await carry_out(ui, "/save")
        assert told == f"information: saved in {ui.chat.log.session.file}"
        assert await carry_out(ui, "/save About [cats] 🐈") == told
        assert [chat.title for chat in saved()] == ["About [cats] 🐈"]


@asynchronous
async def test_save_does_not_claim_a_file_that_is_not_there() -> None:
    async with running_app() as ui:
        told = await carry_out(ui, "/save")
        assert ui.chat.log.session.file.exists() or "saved in" not in told


@asynchronous
async def test_a_chat_that_cannot_be_saved_is_told_as_an_error(chats: Path) -> None:
    chats.parent.mkdir(parents=True, exist_ok=True)
    chats.write_text("a file where the folder should be")
    async with running_app() as ui:
        assert (await carry_out(ui, "/save a title")).startswith("error: the chat is not saved")


@asynchronous
async def test_load_goes_on_with_a_chat_by_id_or_title() -> None:
    file = saved_chat(3)
    async with running_app() as ui:
        await ui.asks("mine", "one")
        mine = ui.chat.log.session.file
        await carry_out(ui, "/save My own")
        await ui.enter(f"/load {file.stem}")
        await ui.sees("question 3", "answer 3")
        assert "mine" not in ui.seen()
        assert await carry_out(ui, f"/load {file.stem}") == "", "it is open"
        assert await carry_out(ui, f"/load {file}") == "", "by any name"
        assert await carry_out(ui, f"/load {os.path.relpath(file)}") == "", "by any name"
        await ui.asks("question 4", "answer 4")
        await ui.enter("/load My own")
        await ui.sees("mine", "one")
        assert ui.chat.log.session.file == mine
        assert len(read(file)[1].turns) == 4
        assert ui.errors == []


@asynchronous
async def test_export_writes_markdown_and_overwrites_nothing(home: Path) -> None:
    async with running_app(options=ChatOptions("./model")) as ui:
        await ui.asks("a question", "an *answer*")
        told = await carry_out(ui, "/export")
        (written,) = home.glob("*.md")
        assert told == f"information: written to {written}"
        assert written.name == f"chat-{ui.chat.log.session.id}.md"
        assert "# a question\n\nModel: ./model" in written.read_text()
        assert "an *answer*" in written.read_text()
        assert (await carry_out(ui, "/export")).endswith("exists; give another name")
        assert await carry_out(ui, "/export ~/my chat.md") == f"information: written to {home / 'my chat.md'}"
        for name in ("no/such/folder.md", "~nosuchuser/x.md", "x" * 5_000):
            assert (await carry_out(ui, f"/export {name}")).startswith("error: "), name
        assert len(list(home.iterdir())) == 2


@asynchronous
async def test_exit_and_its_aliases_leave() -> None:
    for text in ("/exit", "/quit"):
        async with running_app() as ui:
            await ui.enter(text)
            await ui.leaves()
        assert ui.engine.closed


@asynchronous
async def test_help_is_opened() -> None:
    async with running_app() as ui:
        await ui.enter("/help")
        assert isinstance(ui.app.screen, HelpScreen)
        await ui.press("escape")
        assert len(ui.app.screen_stack) == 1


# -- what is no command -----------------------------------------------------------------------------------------


@asynchronous
async def test_two_slashes_send_one_and_a_path_is_sent_as_it_is() -> None:
    async with running_app() as ui:
        ui.engine.on(Generate, answering("ok"))
        for text in ("//help me", "/usr/bin/python is old", "/", "1/2"):
            await ui.enter(text)
            await ui.reach("ready")
        assert [typed for typed, _ in ui.turns] == ["/help me", "/usr/bin/python is old", "/", "1/2"]
        assert ui.errors == []


@pytest.mark.parametrize("text", ["/sytem You are brief.", "/temp hot"])
@asynchronous
async def test_a_command_that_is_none_or_failed_is_there_to_be_corrected(text: str) -> None:
    """In the prompt, or one key away; the message asks to put a slash before it."""
    async with running_app() as ui:
        await ui.enter(text)
        assert len(ui.errors) == 1
        if ui.prompt.text != text:
            await ui.press("up")
        assert ui.prompt.text == text
        assert ui.turns == []


@asynchronous
async def test_errors_of_the_disk_are_told_in_words() -> None:
    async with running_app() as ui:
        await ui.enter("/export no/such/folder/chat.md")
        assert ui.errors[-1] == "no/such/folder/chat.md: No such file or directory"


@asynchronous
async def test_a_mention_without_a_file_is_told() -> None:
    async with running_app() as ui:
        ui.engine.on(Generate, answering("yes"))
        await ui.enter("what is in @nosuch.py ?")
        await ui.sees("yes")
        assert any(told.startswith("there is no file @nosuch.py") for _, told in ui.notices)
