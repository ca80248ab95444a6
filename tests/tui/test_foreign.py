"""Text and links of models and files in the chat: they control neither the terminal nor the desktop."""

import pytest
from mlxmtp_tui.options import ChatOptions
from mlxmtp_tui.widgets.markdown import GrowingMarkdown
from textual.widgets import Markdown

from mlxmtp.terminal import CONTROL
from mlxmtp.worker.messages import Failed, Generate
from tests.tui.harness import answering, asynchronous, finished, running_app, said

TITLE = "\x1b]0;mine\x07"
SHOWN = "\\u001b]0;mine\\u0007"


def controls(text: str) -> set[str]:
    return set(CONTROL.findall(text))


@asynchronous
async def test_nothing_in_a_chat_reaches_the_terminal_as_a_control_character(home) -> None:
    """Control characters from: the model's name, the question, thinking, answer, tool call, an entity, a paste."""
    (home / f"file{TITLE}.md").write_text("x")
    async with running_app(options=ChatOptions(model=f"m{TITLE}")) as ui:
        pieces = [said(TITLE, "thinking"), said("so \x1b"), said("]0;mine\x07 \x9b2J &#x202e;end"), said(TITLE, "tool")]
        ui.engine.on(Generate, [*pieces, finished("so", thinking=TITLE)])
        await ui.enter(f"ask {TITLE}")
        await ui.until(ui.drawn)
        await ui.press("ctrl+t")
        await ui.sees(f"ask {SHOWN}", f"so {SHOWN} \\u009b2J end", f"⚒ {SHOWN}")
        await ui.until(lambda: ui.seen().count(SHOWN) == 6, "name twice, question, thinking, answer, call")
        assert controls(ui.seen()) == set()
        await ui.paste(f"paste {TITLE}")
        await ui.sees("paste ]0;mine")
        assert controls(ui.seen()) == set()
        assert ui.prompt.text == f"paste {TITLE}", "it is sent as it is"
        ui.prompt.fill("")
        await ui.write("@file")
        await ui.sees(f"@file{SHOWN}.md")
        assert controls(ui.seen()) == set()


@asynchronous
async def test_a_saved_chat_and_a_failure_are_shown_as_text() -> None:
    async with running_app() as ui:
        await ui.asks(f"first {TITLE}", f"answer {TITLE}")
        ui.engine.on(Generate, [Failed(0, "bug", f"the template says {TITLE}")])
        await ui.enter("next")
        await ui.until(lambda: ui.errors)
        assert ui.told == f"the template says {SHOWN}"
        ui.app.slash("edit")  # the turns that are left are drawn anew
        await ui.until(lambda: len(ui.turns) == 1 and ui.drawn())
        await ui.sees(f"first {SHOWN}", f"answer {SHOWN}")
        assert ui.turns[0] == (f"first {TITLE}", f"answer {TITLE}"), "kept as it was"
        ui.app.slash("load")
        await ui.sees(f"first {SHOWN}", "Go on with a chat")
        assert controls(ui.seen()) == set()


@asynchronous
async def test_a_click_opens_links_to_the_web_only(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    web = ["http://a.example/x", "HTTPS://b.example"]
    others = ["file:///etc/passwd", "/etc/passwd", "vscode://x", "ssh://-oProxyCommand=x", "https:x", "x", ""]
    async with running_app() as ui:
        ui.engine.on(Generate, answering("[a](http://a.example/x)"))
        await ui.asks("link", "[a](http://a.example/x)")
        monkeypatch.setattr(ui.app._driver, "open_url", lambda url, new_tab=True: opened.append(url))
        markdown = ui.app.query_one(GrowingMarkdown)
        for url in (*web, *others):
            markdown.post_message(Markdown.LinkClicked(markdown, url))
        await ui.until(lambda: "is not opened" in ui.told and len(ui.notices) == len(others))
        assert opened == web
        told = [text for _, text in ui.notices]
        assert told == [f"{url} is not opened: only links to http and https are" for url in others]
