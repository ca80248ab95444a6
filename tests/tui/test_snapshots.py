"""The main screens at three sizes, dark and light, as they were looked at; `--snapshot-update` draws them anew."""

import asyncio
from collections.abc import Awaitable, Callable
from itertools import product
from typing import Any

import pytest
from mlxmtp_tui.app import ChatApp
from mlxmtp_tui.options import ChatOptions
from mlxmtp_tui.widgets.prompt import PromptInput
from textual.pilot import Pilot

from mlxmtp.worker.messages import CachedModel, Compare, Generate, ListModels, Models, PromptProgress
from tests.grids import cases
from tests.tui.harness import Engines, ScriptedEngine, compared, finished, loaded, said, until

SIZES = {"narrow": (60, 24), "usual": (100, 30), "wide": (150, 44)}
THEMES = {"dark": "textual-dark", "light": "textual-light"}

ANSWER = """\
Two ways, and **both** keep the list:

1. `reversed(items)` walks from the end
2. a slice copies: 日本語 works too 🎈

```python
def backwards(items: list[int]) -> list[int]:
    return items[::-1]  # a copy
```
"""


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that is said is drawn before `settled` looks for the second time."""
    monkeypatch.setattr("mlxmtp_tui.widgets.turns.MAX_INTERVAL_S", 0.05)
    monkeypatch.setattr("mlxmtp_tui.app.ALONE_S", 0.05)


def show(engines: Engines, steps: Callable[[Any, ScriptedEngine], Awaitable[None]], theme: str) -> Any:
    """What `snap_compare` takes: the application, and what happens before the picture."""
    app = ChatApp(engines, ChatOptions())

    async def before(pilot: Pilot[None]) -> None:
        app.theme = THEMES[theme]
        app.query_one(PromptInput).cursor_blink = False
        app.chat.state.clock = lambda: 100.0
        await until(lambda: app.chat.state.status == "ready", "the model")
        await steps(app, engines.all[0])
        await settled(app, pilot)

    return app, before


async def settled(app: ChatApp, pilot: Pilot[None]) -> None:
    """Wait until nothing changes on the screen any more."""
    seen, same = "", 0
    while same < 4:
        await pilot.pause()
        await asyncio.sleep(0.08)
        now = "\n".join(line.text for line in app.screen._compositor.render_strips())
        seen, same = now, same + 1 if now == seen else 0


async def answered(app: ChatApp, engine: ScriptedEngine) -> None:
    engine.on(Compare, [compared()])
    engine.on(Generate, [said("Which list?\n", "thinking"), said(ANSWER), finished(ANSWER, thinking="Which list?")])
    app.chat.submit("How do I reverse a list?")
    await until(lambda: app.chat.state.status == "ready", "the first answer")
    app.chat.measure()
    await until(lambda: app.chat.state.status == "ready", "the measurement")
    engine.on(Generate, [said("Yes."), finished("Yes.", "length", tokens=96)])
    app.chat.submit("And a tuple?")
    await until(lambda: app.chat.state.status == "ready", "the second answer")


async def answering(app: ChatApp, engine: ScriptedEngine) -> None:
    await answered(app, engine)
    engine.on(Generate, [said("Let me see", "thinking", tokens=4), said("As I said: ", tokens=8), said("it", tokens=9)])
    app.chat.submit("Once more, in one sentence.")
    app.chat.state.rates.extend([58.0, 61.0, 63.0, 60.0, 64.0, 66.0])


async def reading(app: ChatApp, engine: ScriptedEngine) -> None:
    engine.on(Generate, [PromptProgress(0, 4096, 12_000)])
    app.chat.submit("a long text\n" * 40)


async def turns(app: ChatApp, engine: ScriptedEngine) -> None:
    await answered(app, engine)
    app.slash("stats", "turns")


async def picker(app: ChatApp, engine: ScriptedEngine) -> None:
    found = [
        CachedModel("mlx-community/Qwen3.6-27B-4bit", 15_100_000_000, None, "plain", "no head"),
        CachedModel("Qwen/Qwen3.5-9B", 19_300_000_000, "qwen-mtp", "speculates", "its head is in the shards"),
        CachedModel("someone/broken", 0, None, "refused", "no config.json"),
    ]
    engines: Any = app.start_engine
    engines.script[ListModels] = [Models(0, found, 16_000_000_000)]
    app.slash("model")


async def gone(app: ChatApp, engine: ScriptedEngine) -> None:
    await answered(app, engine)
    engine.die(-9)
    await until(lambda: app.chat.state.status == "gone", "the end")
    app.clear_notifications()


async def help_(app: ChatApp, engine: ScriptedEngine) -> None:
    app.slash("help")


EVERYWHERE = [answered, answering, turns, picker]
ELSEWHERE = [("narrow", "light"), ("wide", "dark")]


def by_default(steps: Callable[..., Any], size: str, theme: str) -> bool:
    """Turns at the usual size; an answer at every size, and in both themes."""
    return (steps, size, theme) == (turns, "usual", "dark") or (steps is answered and (size, theme) in ELSEWHERE)


@pytest.mark.parametrize(
    ("steps", "size", "theme"),
    [
        pytest.param(*case, id=f"{case[0].__name__}-{case[1]}-{case[2]}", marks=marks)
        for case in product(EVERYWHERE, SIZES, THEMES)
        for marks in [() if by_default(*case) else pytest.mark.exhaustive]
    ],
)
def test_main_screens(snap_compare, steps, size, theme):
    app, before = show(Engines(), steps, theme)
    assert snap_compare(app, terminal_size=SIZES[size], run_before=before)


@pytest.mark.parametrize("steps", cases([reading, gone, help_], default=[help_]), ids=lambda steps: steps.__name__)
def test_other_screens(snap_compare, steps):
    app, before = show(Engines(), steps, "dark")
    assert snap_compare(app, terminal_size=SIZES["wide"], run_before=before)


def test_without_colour(snap_compare, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    engines = Engines({Generate: [said("Hello."), finished("Hello.")]})
    app, before = show(engines, answered, "dark")
    assert snap_compare(app, terminal_size=SIZES["usual"], run_before=before)


def test_a_plain_model_says_why(snap_compare):
    engines = Engines()
    why = "the conversion has lost its head; mlxmtp attach gives it back"
    plain = loaded("mlx-community/some-model-4bit", head=None, plain_because=why, promise="distribution")
    from mlxmtp.worker.messages import Load

    engines.script[Load] = [plain]
    app, before = show(engines, answered, "dark")
    assert snap_compare(app, terminal_size=SIZES["wide"], run_before=before)
