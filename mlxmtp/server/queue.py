"""Who is next: a bounded queue in front of the one engine, fair between clients."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque

from mlxmtp.server.errors import queue_full


class FairQueue:
    """One runs, the others wait; clients take turns, whoever sends more.

    Args:
        limit: how many may wait, at least 0.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        self._taken = False

    @property
    def waiting(self) -> int:
        return sum(map(len, self._waiting.values()))

    @property
    def running(self) -> int:
        return int(self._taken)

    def check(self) -> None:
        """Raises ApiError where one more could not wait."""
        if self._taken and self.waiting >= self._limit:
            raise queue_full(self.waiting)

    async def enter(self, client: str) -> None:
        """Wait for one's turn; `leave` ends it. Whoever is cancelled while waiting has left the queue.

        Raises:
            ApiError: the queue is full.
        """
        self.check()
        if self._taken:
            await self._wait(client)
        self._taken = True

    def leave(self) -> None:
        """The turn is over; the next client's begins."""
        while self._waiting:
            client, turns = self._waiting.popitem(last=False)
            turn = turns.popleft()
            if turns:
                self._waiting[client] = turns  # behind the others
            if not turn.done():
                turn.set_result(None)  # the place stays taken
                return
        self._taken = False

    async def _wait(self, client: str) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(client, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave()  # it was our turn at this very moment
            else:
                self._forget(client, turn)
            raise

    def _forget(self, client: str, turn: asyncio.Future[None]) -> None:
        turns = self._waiting.get(client)
        if turns and turn in turns:
            turns.remove(turn)
            if not turns:
                del self._waiting[client]
