"""What happens to a chat, drawn: one change of the transcript after the other."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from textual.widget import MountError

if TYPE_CHECKING:
    from mlxmtp_tui.app import ChatApp
    from mlxmtp_tui.conversation import Answer, Turn
    from mlxmtp_tui.widgets.transcript import Transcript

WELCOME = "Type a message and press enter. /help shows keys and commands."


class Changes:
    """Changes of the app's transcript, in the order in which they are asked for; none of them waits."""

    def __init__(self, app: ChatApp) -> None:
        self._app = app
        self._changing = asyncio.Lock()
        self._open = 0

    def begin(self, turn: Turn) -> None:
        self._do(lambda transcript: transcript.begin(turn))

    def feed(self, parts: list[list[str]]) -> None:
        """More of the answer; at once where nothing is in front of it."""

        async def draw(transcript: Transcript) -> None:
            if transcript.answering:
                transcript.answering.feed(parts)

        transcript = self._app.transcript
        if self._open or not (transcript and transcript.answering):
            self._do(draw)
        else:
            transcript.answering.feed(parts)

    def finish(self, answer: Answer) -> None:
        async def draw(transcript: Transcript) -> None:
            if transcript.answering:
                await transcript.answering.finish(answer)

        self._do(draw)

    def show(self, turns: list[Turn]) -> None:
        """These turns in place of those that are there."""

        async def draw(transcript: Transcript) -> None:
            await transcript.show(turns)
            if not turns:
                await transcript.note(WELCOME)

        self._do(draw)

    def note(self, text: str) -> None:
        self._do(lambda transcript: transcript.note(text))

    def _do(self, change: Callable[[Transcript], Awaitable[None]]) -> None:
        async def in_turn() -> None:
            async with self._changing:
                transcript = self._app.transcript
                if self._app.is_running and transcript:
                    try:
                        await change(transcript)
                    except MountError:
                        if self._app.is_running and transcript.is_attached:
                            raise  # else the app was closed on the way
            self._open -= 1

        self._open += 1
        # not its coroutine: where the app is closing, nobody would await it
        self._app.run_worker(in_turn)  # type: ignore[arg-type]
