"""The queue of the one engine: bounded, and fair between clients."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque

from mlxmtp.server.errors import queue_full


class FairQueue:
    """Lets a number of turns run at a time.

    A free place goes to the waiting client with the fewest running turns. Among equals clients alternate, however many
    turns each of them has.

    Args:
        limit: the most turns that wait, at least 0.
        places: the most turns that run, at least 1.
    """

    def __init__(self, limit: int, places: int = 1) -> None:
        self._limit = limit
        self._places = places
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        self._running: Counter[str] = Counter()

    @property
    def waiting(self) -> int:
        """The number of turns that wait."""
        return sum(map(len, self._waiting.values()))

    @property
    def running(self) -> int:
        """The number of turns that run."""
        return self._running.total()

    @property
    def places(self) -> int:
        """The most turns that run. Fewer end no turn that runs; more let turns begin that wait."""
        return self._places

    @places.setter
    def places(self, places: int) -> None:
        self._places = places
        self._begin_waiting()

    def check(self) -> None:
        """Raises ApiError: there is no room for another turn."""
        if self.running >= self._places and self.waiting >= self._limit:
            raise queue_full(self.waiting)

    async def enter(self, client: str) -> None:
        """Wait until the turn may run; `leave` ends it. Cancelling the wait removes the turn from the queue.

        Args:
            client: identifies the client.

        Raises:
            ApiError: the queue is full.
        """
        self.check()
        if self.running < self._places:
            self._running[client] += 1
        else:
            await self._wait(client)

    def leave(self, client: str) -> None:
        """End a running turn of a client, and let the next turn run."""
        self._running[client] -= 1
        if not self._running[client]:
            del self._running[client]
        self._begin_waiting()

    def _begin_waiting(self) -> None:
        """Let turns run while there are places."""
        while self._waiting and self.running < self._places:
            client = min(self._waiting, key=lambda client: self._running[client])  # of equals the first
            turns = self._waiting.pop(client)
            turn = turns.popleft()
            if turns:
                self._waiting[client] = turns  # after the other clients
            if not turn.done():
                self._running[client] += 1
                turn.set_result(None)

    async def _wait(self, client: str) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(client, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave(client)  # cancelled just after its turn had begun
            else:
                self._remove(client, turn)
            raise

    def _remove(self, client: str, turn: asyncio.Future[None]) -> None:
        turns = self._waiting.get(client)
        if turns and turn in turns:
            turns.remove(turn)
            if not turns:
                del self._waiting[client]
