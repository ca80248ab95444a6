"""The queue of the one engine: bounded, and fair between clients."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque

from mlxmtp.server.errors import queue_full


class FairQueue:
    """Lets one turn run at a time. Waiting clients alternate, however many turns each of them has.

    Args:
        limit: the most turns that wait, at least 0.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        self._running = False

    @property
    def waiting(self) -> int:
        """The number of turns that wait."""
        return sum(map(len, self._waiting.values()))

    @property
    def running(self) -> int:
        """The number of turns that run: 0 or 1."""
        return int(self._running)

    def check(self) -> None:
        """Raises ApiError: there is no room for another turn."""
        if self._running and self.waiting >= self._limit:
            raise queue_full(self.waiting)

    async def enter(self, client: str) -> None:
        """Wait until the turn may run; `leave` ends it. Cancelling the wait removes the turn from the queue.

        Args:
            client: identifies the client.

        Raises:
            ApiError: the queue is full.
        """
        self.check()
        if self._running:
            await self._wait(client)
        self._running = True

    def leave(self) -> None:
        """End the running turn, and let the next client's turn run."""
        while self._waiting:
            client, turns = self._waiting.popitem(last=False)
            turn = turns.popleft()
            if turns:
                self._waiting[client] = turns  # after the other clients
            if not turn.done():
                turn.set_result(None)  # `_running` stays true
                return
        self._running = False

    async def _wait(self, client: str) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(client, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave()  # cancelled just after its turn had begun
            else:
                self._remove(client, turn)
            raise

    def _remove(self, client: str, turn: asyncio.Future[None]) -> None:
        turns = self._waiting.get(client)
        if turns and turn in turns:
            turns.remove(turn)
            if not turns:
                del self._waiting[client]
