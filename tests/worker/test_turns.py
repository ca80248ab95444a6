"""Turns of a real worker process with a small model: what it says is what the engine generates, token for token."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mlxmtp import Engine, GenerationOptions
from mlxmtp.engine.output import Segment, join_segments
from mlxmtp.machine import usable_memory
from mlxmtp.worker.messages import (
    Compare,
    Comparison,
    Event,
    Finished,
    Generate,
    Load,
    Loaded,
    PromptProgress,
    Stopped,
    TurnDelta,
)
from tests.worker.driving import SMALL_MODEL, Driven, said, text_of

pytestmark = pytest.mark.process

Messages = list[dict[str, Any]]
ORDER = "I'd like a large latte with oat milk, please."
LONG = "Write a class."  # it never comes to an end
TIMES = {
    "seconds", "ttft_s", "prefill_tps", "decode_tps", "draft_s", "verify_s", "other_s", "peak_memory_bytes",
    "longest_pause_s",
}  # fmt: skip


def user(text: str) -> Messages:
    return [{"role": "user", "content": text}]


def alone(engine: Engine, messages: Messages, settings: GenerationOptions) -> tuple[list[Segment], Any]:
    """What a turn with fresh caches says, and its last chunk."""
    chunks = list(engine.stream(messages, settings))
    return join_segments(part for chunk in chunks for part in chunk.segments), chunks[-1]


def counts(stats: Any) -> dict[str, Any]:
    """What does not depend on the clock, nor on what was there before."""
    return {k: v for k, v in stats.to_dict().items() if k not in TIMES | {"reused_tokens"}}


def assert_is_as_alone(
    events: Sequence[Event], engine: Engine, messages: Messages, settings: GenerationOptions
) -> Finished:
    parts, last = alone(engine, messages, settings)
    assert said(events) == parts
    finished = events[-1]
    assert isinstance(finished, Finished), finished
    assert (finished.reason, finished.message) == (last.finish_reason, engine.assistant_message(parts))
    assert finished.stats
    assert counts(finished.stats) == counts(last.stats)
    return finished


def test_what_is_loaded(loaded: Loaded, engine: Engine) -> None:
    assert (loaded.name, loaded.head, loaded.plain_because) == (str(SMALL_MODEL), engine.head, None)
    assert (loaded.head_source, loaded.head_by_name) == (None, False)
    assert (loaded.context, loaded.has_thinking) == (4096, False)
    assert (loaded.num_tokens, loaded.promise) == (engine.guarantee.num_tokens, engine.guarantee.promise)
    assert loaded.promise == "identical", "on this backend"
    assert loaded.memory_limit == usable_memory() > 0
    assert loaded.seconds > 0


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("Tell me a story", GenerationOptions(depth=3, max_tokens=24)),
        ("Tell me another story", GenerationOptions(depth=0, max_tokens=24)),
        (
            "How are you?",
            GenerationOptions(temperature=0.9, top_p=0.95, top_k=50, min_p=0.01, seed=7, depth=2, max_tokens=24),
        ),
        ("Do you have espresso?", GenerationOptions(depth=3, max_tokens=5)),
    ],
    ids=["greedy", "plain", "seeded", "cut"],
)
def test_a_turn_is_what_the_engine_generates(
    worker: Driven, engine: Engine, text: str, settings: GenerationOptions
) -> None:
    events = worker.answer(Generate, user(text), settings)
    finished = assert_is_as_alone(events, engine, user(text), settings)
    *prefilled, end = [event for event in events if not isinstance(event, TurnDelta)]
    assert end is finished
    new = finished.stats.prompt_tokens - finished.stats.reused_tokens - 1  # the first round feeds the last one
    assert [event.total for event in prefilled] == [new] * len(prefilled)
    assert prefilled[-1] == PromptProgress(finished.id, new, new)
    last = events[-2]
    assert (last.stats, last.memory.caches) == (finished.stats, finished.memory.caches)
    assert finished.memory.peak > finished.memory.active > finished.memory.caches > 0


def test_its_text_is_the_result(worker: Driven, engine: Engine) -> None:
    result = engine.generate("Hello!", GenerationOptions(max_tokens=24))
    events = worker.answer(Generate, user("Hello!"), GenerationOptions(depth=3, max_tokens=24))
    assert text_of(events) == result.text == events[-1].message["content"]
    sampled = worker.answer(Generate, user("Hello!"), GenerationOptions(temperature=1.0, seed=1, depth=3, max_tokens=9))
    assert (
        text_of(sampled)
        == engine.generate("Hello!", GenerationOptions(temperature=1.0, seed=1, max_tokens=9)).text
        != result.text
    )


def test_statistics_only_grow(worker: Driven) -> None:
    events = [
        event
        for event in worker.answer(Generate, user(ORDER), GenerationOptions(depth=3, max_tokens=24))
        if isinstance(event, TurnDelta)
    ]
    tokens = [event.stats.tokens for event in events]
    assert len(tokens) > 1
    assert tokens == sorted(set(tokens))


@pytest.mark.exhaustive
def test_calls_are_parsed(home: Path) -> None:
    """The demo model calls a tool; the parts of an answer are shown by default in tests/engine and test_commands."""
    with Driven() as worker:
        worker.answer(Load)
        events = worker.answer(Generate, user(ORDER), GenerationOptions(depth=3))
    assert [part.kind for part in said(events)] == ["text", "tool", "text"]
    assert "tool_call" not in text_of(events)
    call = {"type": "function", "function": {"name": "get_menu_items", "arguments": {"query": "Latte"}}}
    assert events[-1].message == {"role": "assistant", "content": "", "tool_calls": [call]}


def test_the_next_turns_go_on_from_the_caches(worker: Driven, engine: Engine) -> None:
    """What was read or said before is not read again: an answer, a call with its result."""
    messages, held = user("Hello, a question before the others."), None
    for following in (user(ORDER), [{"role": "tool", "content": "Latte"}], []):
        events = worker.answer(Generate, messages, GenerationOptions(depth=3, max_tokens=24))
        finished = assert_is_as_alone(events, engine, messages, GenerationOptions(depth=3, max_tokens=24))
        assert finished.stats
        if held:
            assert finished.stats.reused_tokens == held
            assert events[0].total == finished.stats.prompt_tokens - held
        held = finished.stats.prompt_tokens + finished.stats.tokens
        messages = [*messages, finished.message, *following]


def test_a_turn_can_be_stopped(worker: Driven, engine: Engine) -> None:
    settings = GenerationOptions(depth=3, max_tokens=3000)
    command = worker.send(Generate, user(LONG), settings)
    before = worker.until(TurnDelta)
    worker.stop(command)
    events = [before, *worker.rest(command)]
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert finished.reason == "interrupted"
    came = finished.message["content"]
    assert came.startswith(text_of(events))
    assert text_of(events)
    whole = engine.generate(LONG, GenerationOptions(max_tokens=finished.stats.tokens)).text
    assert whole in (came, came + " "), "a space is held back until the next token"

    messages = [*user(LONG), finished.message, *user("Tell me a story")]
    events = worker.answer(Generate, messages, GenerationOptions(depth=3, max_tokens=24))
    assert_is_as_alone(events, engine, messages, GenerationOptions(depth=3, max_tokens=24))


def test_a_stop_for_an_old_command_ends_no_newer_one(worker: Driven) -> None:
    old = worker.answer(Generate, user("Hello!"), GenerationOptions(depth=3, max_tokens=1))[-1].id
    command = worker.send(Generate, user(ORDER), GenerationOptions(depth=3, max_tokens=24))
    worker.stop(old)
    worker.until(TurnDelta)
    worker.stop(old)
    finished = worker.rest(command)[-1]
    assert (finished.reason, finished.stats.tokens) == ("length", 24)


def test_commands_that_wait_are_stopped_too(worker: Driven) -> None:
    first = worker.send(Generate, user(LONG), GenerationOptions(depth=3, max_tokens=3000))
    worker.until(TurnDelta)
    second = worker.send(Compare, user(LONG), GenerationOptions(depth=3, max_tokens=24))
    worker.stop(second, first)
    assert worker.rest(first)[-1].reason == "interrupted"
    assert worker.rest(second) == [Stopped(second)]


def test_a_turn_that_is_stopped_before_it_begins_is_finished_all_the_same(worker: Driven) -> None:
    """`Stopped` is for the other commands: who waits for a turn waits for `Finished`."""
    first = worker.send(Generate, user(LONG), GenerationOptions(depth=3, max_tokens=3000))
    worker.until(TurnDelta)
    second = worker.send(Generate, user(LONG), GenerationOptions(depth=3, max_tokens=24))
    worker.stop(second, first)
    assert worker.rest(first)[-1].reason == "interrupted"
    assert worker.rest(second) == [Finished(second, "interrupted", {"role": "assistant", "content": ""})]


def test_a_comparison_can_be_stopped(worker: Driven) -> None:
    """It costs the conversation nothing."""
    turn = worker.answer(Generate, user(ORDER), GenerationOptions(depth=3, max_tokens=24))[-1]
    command = worker.send(Compare, user(ORDER), GenerationOptions(depth=1))
    first = worker.until(Comparison)
    worker.stop(command)
    events = worker.rest(command)
    assert first.done < first.total
    assert events[-1] == Stopped(command)
    assert all(event.done < event.total for event in events[:-1])
    messages = [*user(ORDER), turn.message, {"role": "tool", "content": "Latte"}]
    finished = worker.answer(Generate, messages, GenerationOptions(depth=3, max_tokens=1))[-1]
    assert finished.stats.reused_tokens == turn.stats.prompt_tokens + turn.stats.tokens
