"""What `Worker` makes of commands: failures that it survives, stops to the round, and what it passes on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

import pytest

from mlxmtp import Chunk, Engine, GenerationOptions
from mlxmtp.engine.output import Segment
from mlxmtp.engine.prefix_cache import PrefixCache
from mlxmtp.engine.scheduler import ChunkRead
from mlxmtp.engine.trace import RoundTrace, TracedText
from mlxmtp.worker.inbox import Inbox
from mlxmtp.worker.lines import encode
from mlxmtp.worker.messages import (
    Command,
    Compare,
    Failed,
    Finished,
    Generate,
    ListModels,
    PromptProgress,
    Stop,
    TurnDelta,
)
from tests.within import within
from tests.worker.driving import serve, text_of, wait_until
from tests.worker.test_messages import STATS

HELLO = [{"role": "user", "content": "hello"}]
VOCABULARY = 300
"""Every byte has a token: a prompt has as many as letters."""


class NoSequence:
    """In place of a conversation's caches."""

    nbytes = 0


class Scripted:
    """An engine whose turns are written down: chunks, or errors in their place; and its scheduler.

    Args:
        script: of every turn. scripts: of the turns to one prompt each, by its text.
    """

    ranks = why_apart = None
    fit = SimpleNamespace(warning=lambda: None)

    def __init__(self, *script: Any, **scripts: Any) -> None:
        self.script, self.scripts = script, scripts
        self.turns: dict[int, Iterator[Any]] = {}
        self.given = 0
        self.closed = False
        self.held: list[int] = []
        self.asked: list[Any] = []

    def open_turn(self, *prompt: Any, prefix_cache: PrefixCache, **options: Any) -> Any:
        prefix_cache._sequences.append(NoSequence())
        self.held.append(len(prefix_cache._sequences))
        self.asked.append((prompt, options))
        return self._turn(self.scripts.get(prompt[0][0]["content"], self.script))

    def _turn(self, script: Iterable[Any]) -> Iterator[Any]:
        try:
            yield ChunkRead(1, 1)
            for item in script:
                self.given += 1
                yield item
        finally:
            self.closed = True

    def scheduler(self, *_: Any) -> Any:
        return self

    def add(self, key: int, turn: Iterator[Any]) -> None:
        self.turns[key] = turn

    def cancel(self, key: int) -> None:
        self.turns.pop(key).close()  # type: ignore[attr-defined]

    def step(self) -> list[tuple[int, Any]]:
        events = [(key, next(turn)) for key, turn in self.turns.items()]
        for key, event in events:
            if isinstance(event, Exception) or getattr(event, "finish_reason", None):
                self.cancel(key)
        return events

    def assistant_message(self, parts: list[Segment]) -> dict[str, Any]:
        return {"role": "assistant", "content": "".join(part.text for part in parts)}


def chunk(text: str, finish: str | None = None) -> Chunk:
    return Chunk(text, (1,), STATS, finish, (Segment("text", text),))


def ask(number: int, **settings: Any) -> Generate:
    return Generate(number, HELLO, GenerationOptions(**settings))


def test_rounds_are_traced_where_asked_for() -> None:
    trace = RoundTrace(3, 1, from_lookup=True, texts=(TracedText("text", "a", 1), TracedText("text", "b", 0)))
    chunks = [replace(chunk("ab"), trace=trace), replace(chunk("ab", "stop"), trace=trace)]
    for asked in (True, False):
        events = serve(replace(ask(1), trace=asked), engine=Scripted(*chunks))
        rounds = [one for event in events if isinstance(event, TurnDelta) for one in event.rounds]
        assert rounds == 2 * asked * [[3, 1, True, [["text", "a", 1], ["text", "b", 0]]]]


# -- stops ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rounds", [1, 3, 50])
def test_a_stop_is_heard_after_the_round_that_it_comes_in(rounds: int) -> None:
    engine = Scripted(*(chunk(f"{i} ") for i in range(1000)))
    events = serve(ask(1), engine=engine, stops=lambda _: engine.given >= rounds)
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert (finished.reason, engine.given, engine.closed) == ("interrupted", rounds, True)
    whole = "".join(f"{i} " for i in range(rounds))
    assert finished.message["content"] == whole, "what came is kept, said or not"
    assert whole.startswith(text_of(events))
    assert finished.stats == STATS


def test_a_turn_that_is_over_was_not_interrupted() -> None:
    engine = Scripted(chunk("the end", "length"))
    assert serve(ask(1), engine=engine, stops=lambda _: engine.given > 0)[-1].reason == "length"


def test_of_a_turn_stopped_in_its_prompt_there_is_nothing() -> None:
    engine = Scripted(chunk("never said"))
    heard = iter([False, True])
    events = serve(ask(1), engine=engine, stops=lambda _: next(heard))
    assert events == [Finished(1, "interrupted", {"role": "assistant", "content": ""})]
    assert (engine.given, engine.closed) == (0, True)


@pytest.fixture
def inbox() -> tuple[Inbox, Callable[[Command], None]]:
    """An inbox, and what puts commands in it; it never comes to its end, which would end this process."""
    lines: SimpleQueue[bytes] = SimpleQueue()
    inbox = Inbox(iter(lines.get, None))  # type: ignore[arg-type]
    return inbox, lambda command: lines.put(encode(command))


def test_a_stop_holds_for_its_command_only(inbox: tuple[Inbox, Callable[[Command], None]]) -> None:
    box, put = inbox
    for command in (ListModels(3), ListModels(4), Stop(4), Stop(2), ListModels(5)):
        put(command)
    assert [box.next(), box.next(), box.next()] == [ListModels(3), ListModels(4), ListModels(5)]
    assert [box.stops(ListModels(number)) for number in (2, 3, 4, 5)] == [True, False, True, False]
    assert box.poll() is None
    put(Stop(9))
    assert wait_until(lambda: box.stops(ListModels(9)), 5), "heard, though nobody asks for the next command"
    assert not box.stops(ListModels(10))


def test_the_end_of_the_input_is_kept_for_who_waits_for_commands() -> None:
    lines: SimpleQueue[bytes | None] = SimpleQueue()
    box = Inbox(iter(lines.get, None))  # type: ignore[arg-type]
    box.grace_s = 1e6  # the end of the input would end this process
    lines.put(encode(ListModels(1)))
    assert wait_until(lambda: box.poll() == ListModels(1), 5)
    lines.put(None)
    assert wait_until(lambda: box.stops(ListModels(2)), 5)
    with within(5):
        assert [box.poll(), box.poll(), box.next()] == [None, None, None]


# -- failures -------------------------------------------------------------------------------------------------

NO_MEMORY = [
    RuntimeError("[malloc] Unable to allocate 123 bytes."),
    RuntimeError("[METAL] Command buffer execution failed: Insufficient Memory (00000008:kIOGPUCommandBufferCallback"),
    RuntimeError("cudaMallocAsync(&data, size, stream) failed: out of memory"),
    MemoryError(),
]


@pytest.mark.parametrize("error", NO_MEMORY, ids=lambda error: type(error).__name__)
def test_too_little_memory_is_told_and_survived(error: Exception) -> None:
    engine = Scripted(chunk("a"), error)
    failed = [event for event in serve(ask(1), ask(2), engine=engine) if isinstance(event, Failed)]
    assert failed == [Failed(number, "memory", str(error) or "out of memory") for number in (1, 2)]
    assert engine.held == [1, 1], "the conversations' caches are given back"


def test_after_too_little_memory_the_next_turn_works() -> None:
    engine = Scripted(chunk("a", "stop"), first=[MemoryError("too large")])
    first = Generate(1, [{"role": "user", "content": "first"}], GenerationOptions())
    events = serve(first, ask(2), engine=engine)
    assert events[1] == Failed(1, "memory", "too large")
    assert text_of(events) == "a"
    assert events[-1] == Finished(2, "stop", engine.assistant_message([Segment("text", "a")]), STATS, events[-1].memory)


@pytest.mark.parametrize("error", [RuntimeError("an accident"), KeyError("x")], ids=repr)
def test_an_accident_is_not_hidden(error: Exception) -> None:
    with pytest.raises(type(error)):
        serve(ask(1), engine=Scripted(error))


def test_errors_of_the_disk_are_told() -> None:
    events = serve(ask(1), ask(2), engine=Scripted(OSError(28, "No space left on device")))
    assert events[0] == PromptProgress(1, 1, 1)
    assert [event for event in events if isinstance(event, Failed)] == [
        Failed(number, "failed", "[Errno 28] No space left on device") for number in (1, 2)
    ]


def test_without_a_model_there_are_no_turns() -> None:
    events = serve(ask(1), Compare(2, HELLO, GenerationOptions()))
    assert events == [Failed(i, "refused", "no model is loaded; choose one first") for i in (1, 2)]


def test_a_prompt_longer_than_the_context_is_refused_and_costs_no_cache(engine: Engine) -> None:
    long = [{"role": "user", "content": "word " * 5000}]
    held = serve(ask(1, max_tokens=3), engine=engine)[-1]
    assert isinstance(held, Finished)
    goes_on = [*HELLO, held.message, *HELLO]
    refused = Generate(2, long, GenerationOptions()), Compare(3, long, GenerationOptions())
    events = serve(ask(1, max_tokens=3), *refused, Generate(4, goes_on, GenerationOptions(max_tokens=1)), engine=engine)
    failed = [event for event in events if isinstance(event, Failed)]
    assert [(event.id, event.kind) for event in failed] == [(2, "refused"), (3, "refused")]
    assert all("4096" in event.message for event in failed)
    assert events[-1].stats.reused_tokens == held.stats.prompt_tokens + held.stats.tokens


@pytest.mark.parametrize(
    "messages",
    [[], [{"role": "user"}], [{"content": "no role"}]],
    ids=["none", "no content", "no role"],
)
def test_messages_that_make_no_prompt_are_refused(engine: Engine, messages: list[dict[str, Any]]) -> None:
    events = serve(Generate(1, messages, GenerationOptions(max_tokens=1)), ask(2, max_tokens=1), engine=engine)
    assert isinstance(events[0], Failed), events[0]
    assert events[0].kind == "refused"
    assert isinstance(events[-1], Finished)


HALF_A_PAIR = {
    "pasted": [{"role": "user", "content": "half a pair \ud83d"}],
    "called": [
        *HELLO,
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"a": "\ud83d"}}}]},
        *HELLO,
    ],
}


@pytest.mark.parametrize("messages", HALF_A_PAIR.values(), ids=HALF_A_PAIR)
def test_text_that_is_no_unicode_ends_no_process(engine: Engine, messages: list[dict[str, Any]]) -> None:
    """A terminal passes such text on, and a model writes it as JSON's \\ud83d."""
    events = serve(Generate(1, messages, GenerationOptions(max_tokens=1)), ask(2, max_tokens=1), engine=engine)
    ends = [event for event in events if isinstance(event, Finished | Failed)]
    assert [event.id for event in ends] == [1, 2]
    assert isinstance(ends[1], Finished)


def test_settings_are_passed_on() -> None:
    wanted = GenerationOptions(temperature=0.7, seed=11, depth=2, max_tokens=17, stop=["#"], logprobs=2)
    engine = Scripted(chunk("a", "stop"))
    serve(Generate(1, HELLO, wanted, [1], "<"), engine=engine)
    assert engine.asked == [((HELLO, wanted), {"raw": False, "opening": "<", "boundaries": [1], "conversation": True})]


def test_log_probabilities_are_those_of_the_engine(engine: Engine) -> None:
    """Each token's, once and in order, however many rounds a message holds."""
    events = serve(ask(1, max_tokens=12, depth=2, logprobs=2), engine=engine)
    told = [one for event in events if isinstance(event, TurnDelta) for one in event.logprobs]
    chunks = engine.stream(HELLO, GenerationOptions(max_tokens=12, depth=2, logprobs=2))
    expected = [
        [one.token, one.logprob, [list(pair) for pair in one.top]] for chunk in chunks for one in chunk.logprobs
    ]
    assert len(expected) > 8
    assert told == expected
