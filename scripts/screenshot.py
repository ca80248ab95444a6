"""Make the README's picture of the chat, with the real engine and the bundled model.

.venv/bin/python scripts/screenshot.py [docs/chat.svg]
"""

import asyncio
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from mlxmtp_tui.app import ChatApp
from mlxmtp_tui.options import ChatOptions
from mlxmtp_tui.sessions import Session
from mlxmtp_tui.widgets.prompt import PromptInput

from mlxmtp.worker.process import WorkerProcess

SIZE = 124, 42
"""Columns and lines of the picture."""
TYPED = ("Write a Python function that reverses a list.", "/bench", "I'd like a large latte with oat milk, please.")
PATIENCE_S = 120.0
"""Seconds to wait for the engine before the script gives up."""


async def main(file: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        app = ChatApp(WorkerProcess.start, ChatOptions(), lambda model: Session.new(model, Path(folder)))
        async with app.run_test(size=SIZE) as pilot:
            await until(lambda: app.chat.state.status == "ready")
            for text in TYPED:
                app.query_one(PromptInput).fill(text)
                await pilot.press("enter")
                await pilot.pause()
                await until(lambda: app.chat.state.status == "ready")
            await asyncio.sleep(1)  # until the last words are drawn
            app.query_one(PromptInput).cursor_blink = False
            await pilot.pause()
            file.write_text(app.export_screenshot(title="mlxmtp chat", simplify=True) + "\n")
    print(file)


async def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        if time.monotonic() > deadline:
            sys.exit("the engine does not get ready; try `mlxmtp chat`")
        await asyncio.sleep(0.1)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/chat.svg")))
