"""Several turns at once: each has the events that it has alone, and its end is nobody else's."""

from __future__ import annotations

from typing import Any

import pytest

from mlxmtp import Engine, GenerationOptions
from mlxmtp.engine.scheduler import Deferred
from mlxmtp.errors import NumericsError
from mlxmtp.worker import downloads
from mlxmtp.worker.messages import (
    Command,
    Compare,
    Event,
    Failed,
    Finished,
    Generate,
    ListModels,
    Load,
    Models,
    Stopped,
    TurnDelta,
    Warned,
    ends_command,
)
from mlxmtp.worker.turns import AUTO_PARALLEL, places
from tests.worker.driving import serve, text_of
from tests.worker.test_commands import HELLO, Scripted, chunk

OPTIONS = [
    GenerationOptions(depth=3, max_tokens=20),
    GenerationOptions(depth=2, max_tokens=30, temperature=0.9, seed=3, logprobs=1),
    GenerationOptions(depth=0, max_tokens=12, logprobs=0),
    GenerationOptions(max_tokens=25, repetition_penalty=1.1),
    GenerationOptions(depth=1, max_tokens=1),
]


def turn(number: int, text: str = "hello", options: GenerationOptions = GenerationOptions()) -> Generate:  # noqa: B008
    return Generate(number, [{"role": "user", "content": text}], options)


def of(events: list[Event], number: int) -> list[Any]:
    """The events of a command."""
    return [event for event in events if event.id == number]


def ends(events: list[Event]) -> list[int]:
    """The commands in the order of their last events."""
    return [event.id for event in events if ends_command(event)]


def test_turns_at_once_say_what_each_says_alone(engine: Engine) -> None:
    asked = [turn(i, f"Question {i} of a few", options) for i, options in enumerate(OPTIONS, start=1)]
    events = serve(*asked, engine=engine, parallel=3)
    assert sorted(ends(events)) == [1, 2, 3, 4, 5]
    for command in asked:
        mine, alone = of(events, command.id), serve(command, engine=engine)
        for found, expected in ((mine, alone), (mine[-1:], alone[-1:])):
            assert text_of(found) == text_of(expected), command.id
        assert (mine[-1].reason, mine[-1].message) == (alone[-1].reason, alone[-1].message), command.id
        told, expected = (
            [token for event in each if isinstance(event, TurnDelta) for token in event.logprobs]
            for each in (mine, alone)
        )
        assert told == expected, command.id
        assert mine[-1].stats.tokens == sum(mine[-1].stats.tokens_by_sequences) == alone[-1].stats.tokens, command.id
    shared = [len(of(events, number)[-1].stats.tokens_by_sequences) for number in (1, 2, 3)]
    assert shared == [3, 3, 3], "they ran at once"


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (NumericsError("not finite"), "refused", "not finite"),
        (MemoryError("too large"), "memory", "too large"),
        (OSError(28, "disk full"), "failed", "disk full"),
        (KeyError("x"), "failed", "KeyError('x'); this should not be"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_a_turn_that_fails_takes_no_other_with_it(
    error: Exception, kind: str, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """An accident, which ends the engine where the turn runs alone, is told and written to standard error."""
    engine = Scripted(bad=[chunk("a"), error], good=[chunk("b"), chunk("c"), chunk("d", "stop")])
    events = serve(turn(1, "good"), turn(2, "bad"), turn(3, "good"), engine=engine, parallel=2)
    (failed,) = (event for event in events if isinstance(event, Failed))
    assert (failed.id, failed.kind, message in failed.message) == (2, kind, True)
    assert ends(events) == [2, 1, 3]
    for number in (1, 3):
        assert text_of(of(events, number)) == "bcd"
        assert of(events, number)[-1].reason == "stop"
    assert ("KeyError" in capfd.readouterr().err) == isinstance(error, KeyError)


def test_a_stop_frees_the_place_within_a_round() -> None:
    engine = Scripted(long=[chunk(f"{i} ") for i in range(100)], short=[chunk("a"), chunk("b", "stop")])
    commands = turn(1, "long"), turn(2, "long"), turn(3, "short"), turn(4, "long")
    events = serve(*commands, engine=engine, parallel=2, stops=lambda command: command.id != 3 and engine.given >= 10)
    assert ends(events) == [1, 2, 4, 3], "the last was stopped before it began"
    assert [of(events, number)[-1].reason for number in (1, 2, 3, 4)] == ["interrupted"] * 2 + ["stop", "interrupted"]
    assert of(events, 1)[-1].message["content"] == "0 1 2 3 4 ", "five rounds of two turns"
    assert text_of(of(events, 3)) == "ab"
    assert not engine.turns


def test_commands_that_need_the_engine_wait_for_its_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """A list of models does not. Turns behind a command that waits do not overtake it."""
    monkeypatch.setattr(downloads, "list_models", lambda id: Models(id, [], 0))
    engine = Scripted(*(chunk("a") for _ in range(5)), chunk("b", "stop"))

    def stops(command: Command) -> bool:
        return isinstance(command, Compare | Load)

    commands: tuple[Command, ...] = (turn(1), ListModels(2), turn(3), Compare(4, HELLO, GenerationOptions()), turn(5))
    events = serve(*commands, Load(6), turn(7), engine=engine, parallel=4, stops=stops)
    assert ends(events) == [2, 1, 3, 4, 5, 6, 7]
    assert {type(event) for event in events if event.id in (4, 6)} == {Stopped}
    assert sum(isinstance(event, Finished) for event in events) == 4


def test_who_waits_for_memory_is_told() -> None:
    engine = Scripted(Deferred(2_000_000_000, 500_000_000), chunk("a", "stop"))
    events = serve(turn(1), engine=engine, parallel=2)
    (warned,) = (event for event in events if isinstance(event, Warned))
    assert ("expected to need 2.0 GB" in warned.message, "others leave 500.0 MB" in warned.message) == (True, True)
    assert events[-1].id == 1


def test_how_many_turns_run_at_once() -> None:
    class Facts:
        def __init__(self, why_apart: str | None = None) -> None:
            self.why_apart = why_apart

    apart = Facts("states cannot be rolled back")
    for facts, wanted, expected in (
        (Facts(), None, (AUTO_PARALLEL, None)),
        (Facts(), 7, (7, None)),
        (apart, None, (1, apart.why_apart)),
        (apart, 3, (3, apart.why_apart)),
        (apart, 1, (1, None)),
    ):
        assert places(facts, wanted) == expected, (vars(facts), wanted)  # type: ignore[arg-type]
