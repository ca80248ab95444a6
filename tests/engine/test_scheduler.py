"""Several turns of one engine at once: the text of each, its place, its memory, its accidents."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import pytest

from mlxmtp import GenerationOptions, load
from mlxmtp.decoding.loop import RoundLoop
from mlxmtp.engine import scheduler
from mlxmtp.engine.engine import Engine
from mlxmtp.engine.generate import Chunk, TextTurn
from mlxmtp.engine.prefix_cache import PrefixCache
from mlxmtp.engine.scheduler import ChunkRead, Deferred, Scheduler
from mlxmtp.errors import OptionError, PromptError
from tests.grids import cases

TRAINED = Path(__file__).parent.parent / "trained"
COUNT = 8
ROOM = 1 << 30


@pytest.fixture(scope="module")
def engine() -> Engine:
    return load(TRAINED / "glm4_moe")


class Turns:
    """Prompts that share beginnings, with options of every kind, and what each gives alone."""

    def __init__(self, engine: Engine, seed: int, long: int = 300) -> None:
        rng = random.Random(seed)
        begin = [rng.randrange(4, engine.target.vocab_size) for _ in range(long)]
        self.prompts = [
            begin[: rng.choice((20, long - 100, long))] + [rng.randrange(4, 60) for _ in range(rng.randrange(1, 40))]
            for _ in range(COUNT)
        ]
        self.engine = engine

    def options(self, i: int) -> GenerationOptions:
        depth = (None, 0, 2, 4)[i % 4]
        if i % 2:
            return GenerationOptions(max_tokens=15 + i, depth=depth, temperature=0.8, seed=i, repetition_penalty=1.1)
        return GenerationOptions(max_tokens=20 + 2 * i, depth=depth)

    def alone(self, i: int) -> list[int]:
        return self.engine.generate(self.prompts[i], self.options(i), raw=True).tokens

    def open(self, i: int, cache: PrefixCache, **options: Any) -> TextTurn:
        return self.engine.open_turn(
            self.prompts[i], self.options(i), raw=True, prefix_cache=cache, prefill_tokens=128, **options
        )


def run(s: Scheduler, arrive: Callable[[], None] = lambda: None) -> Iterator[tuple[Any, Any]]:
    """What happens until nothing is left to do; `arrive` is called before each step."""
    arrive()
    while not s.idle:
        yield from s.step()
        arrive()


def tokens_of(events: list[tuple[Any, Any]]) -> dict[Any, list[int]]:
    found: dict[Any, list[int]] = {}
    for key, event in events:
        if isinstance(event, Chunk):
            found.setdefault(key, []).extend(event.tokens)
    return found


@pytest.mark.parametrize("apart", cases([False, True], [False]))
def test_every_turn_has_the_text_that_it_has_alone(engine: Engine, apart: bool) -> None:
    """They come in at random, reuse what others still read, and give their caches to later ones."""
    turns, cache, rng = Turns(engine, seed=1), PrefixCache(ROOM), random.Random(2)
    s = Scheduler(engine.round_loop(), 3, together=(lambda _: 1) if apart else len)
    coming = list(range(COUNT))

    def arrive() -> None:
        while coming and (s.idle or rng.random() < 0.4):
            s.add(coming[0], turns.open(coming.pop(0), cache))

    events = list(run(s, arrive))
    assert tokens_of(events) == {i: turns.alone(i) for i in range(COUNT)}
    assert cache.stats.reused_tokens > 400, "beginnings were reused"
    assert max(event.stats.rounds for _, event in events if isinstance(event, Chunk)) > 5


def test_turns_that_begin_alike_read_it_once(engine: Engine) -> None:
    """Added at the same time, the second waits for the first to read what both begin with."""
    turns, cache = Turns(engine, seed=3), PrefixCache(ROOM)
    begin = turns.prompts[0][:10] + list(range(10, 60)) * 12
    turns.prompts = [[*begin, 5, i] for i in range(COUNT)]
    s = Scheduler(engine.round_loop(), 4)
    for i in range(4):
        s.add(i, turns.open(i, cache))
    events = list(run(s))
    read = sum(event.stats.prompt_tokens - event.stats.reused_tokens for event in last_of(events).values())
    assert read < 2 * len(begin)
    assert tokens_of(events) == {i: turns.alone(i) for i in range(4)}


def last_of(events: list[tuple[Any, Any]]) -> dict[Any, Chunk]:
    return {key: event for key, event in events if isinstance(event, Chunk)}


def test_a_cancelled_turn_leaves_its_place_at_once_and_its_caches(engine: Engine) -> None:
    turns, cache = Turns(engine, seed=4), PrefixCache(ROOM)
    turns.prompts[2] = list(range(5, 40))  # begins like no other: it takes no caches
    s = Scheduler(engine.round_loop(), 2)
    for i in range(3):
        s.add(i, turns.open(i, cache))
    seen: list[tuple[Any, Any]] = []
    while 2 in s.waiting:
        seen += s.step()
        if len(tokens_of(seen).get(1, ())) > 4:
            s.cancel(1)
    seen += list(run(s))
    found = tokens_of(seen)
    assert found[0] == turns.alone(0)
    assert found[2] == turns.alone(2)
    assert found[1] == turns.alone(1)[: len(found[1])]
    longer = [*turns.prompts[1], *found[1], 7]
    again = engine.generate(longer, GenerationOptions(max_tokens=1, depth=0), prefix_cache=cache, raw=True)
    assert again.stats.reused_tokens >= len(longer) - 2
    s.cancel("unknown")


def test_an_error_ends_its_own_turn(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    turns, cache = Turns(engine, seed=5), PrefixCache(ROOM)
    s, opened = Scheduler(engine.round_loop(), 3), [turns.open(i, cache) for i in range(3)]
    for i, turn in enumerate(opened):
        s.add(i, turn)
    calls = []

    def broken(tokens: list[int]) -> Any:
        calls.append(tokens)
        if len(calls) > 2:
            raise ValueError("text")
        return feed(tokens)

    feed = opened[1]._detokenizer.feed
    monkeypatch.setattr(opened[1]._detokenizer, "feed", broken)
    events = list(run(s))
    assert [str(event) for key, event in events if isinstance(event, Exception) and key == 1] == ["text"]
    found = tokens_of(events)
    assert {i: found[i] for i in (0, 2)} == {i: turns.alone(i) for i in (0, 2)}


def test_where_memory_runs_out_the_largest_turn_ends_and_the_others_go_on(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pass has spoiled all caches: the others read their tokens again, and their text is the same."""
    turns, cache = Turns(engine, seed=6), PrefixCache(ROOM)
    turns.prompts[1] = list(range(10, 60)) * 20
    s = Scheduler(engine.round_loop(), 3)
    for i in range(3):
        s.add(i, turns.open(i, cache))
    events: list[tuple[Any, Any]] = []
    while not all(len(tokens_of(events).get(i, ())) > 3 for i in range(3)):
        events += s.step()
    full = iter([RuntimeError("[malloc] Unable to allocate 1 bytes.")])
    open_shared = engine.target.open_shared

    def once(*args: Any) -> Any:
        passes = open_shared(*args)
        if error := next(full, None):
            raise error
        return passes

    with monkeypatch.context() as patched:
        patched.setattr(engine.target, "open_shared", once)
        while not any(isinstance(event, Exception) for _, event in events):
            events += s.step()
    events += list(run(s))
    assert [key for key, event in events if isinstance(event, Exception)] == [1]
    found = tokens_of(events)
    assert {i: found[i] for i in (0, 2)} == {i: turns.alone(i) for i in (0, 2)}


def test_who_does_not_fit_waits_and_is_told(engine: Engine) -> None:
    turns, cache = Turns(engine, seed=7), PrefixCache(ROOM)
    one = turns.engine.open_turn(turns.prompts[0], GenerationOptions(max_tokens=30), raw=True, prefix_cache=cache)
    s = Scheduler(engine.round_loop(), 4, max_bytes=1)
    s.add("first", one)
    s.add("second", turns.open(1, cache))
    s.add("third", turns.open(2, cache))
    events, order = [], []
    while not s.idle:
        order.append(s.active)
        events += s.step()
    assert all(len(active) <= 1 for active in order), "one alone always runs"
    deferred = [(key, event) for key, event in events if isinstance(event, Deferred)]
    assert [key for key, _ in deferred] == ["second", "third"]
    assert all(event.nbytes > event.free >= 0 for _, event in deferred)
    assert set(tokens_of(events)) == {"first", "second", "third"}


def test_running_turns_go_on_while_a_prompt_is_read(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk of 1 s gives the right to rounds of 0.25 s, and a round takes 0.11 s here."""
    now = [0.0]
    monkeypatch.setattr(scheduler, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    turns, cache = Turns(engine, seed=8), PrefixCache(ROOM)
    turns.prompts[1] = [5 + i % 50 for i in range(900)]
    s = Scheduler(engine.round_loop(), 2)
    for owner, name, seconds in ((TextTurn, "read_chunk", 1.0), (RoundLoop, "round", 0.11)):
        monkeypatch.setattr(owner, name, taking(now, seconds, getattr(owner, name)))
    s.add("running", turns.open(4, cache))
    events: list[tuple[Any, Any]] = []
    while not tokens_of(events):
        events += s.step()
    assert s.longest_pause == 0, "nobody paused while the first prompt was read"
    s.add("reading", turns.open(1, cache))
    kinds = "".join("C" if isinstance(event, ChunkRead) else "R" for _ in range(13) for _, event in s.step())
    assert kinds == "CRRCRRCRRCRRR"
    assert s.longest_pause == pytest.approx(1.0)


def taking(now: list[float], seconds: float, call: Callable[..., Any]) -> Callable[..., Any]:
    """The call, after which so many seconds have passed."""

    def timed(*args: Any, **options: Any) -> Any:
        result = call(*args, **options)
        now[0] += seconds
        return result

    return timed


def test_a_scheduler_that_is_closed_keeps_the_caches(engine: Engine) -> None:
    turns, cache = Turns(engine, seed=9), PrefixCache(ROOM)
    s = Scheduler(engine.round_loop(), 2)
    for i in range(3):
        s.add(i, turns.open(i, cache))
    for _ in range(12):
        s.step()
    s.close()
    assert s.idle
    assert cache.stats.sequences >= 1
    mx.clear_cache()


def test_a_batch_is_each_prompt_alone(engine: Engine) -> None:
    """One call for several prompts; what is wrong with one of them is told before anything is computed."""
    turns, options = Turns(engine, seed=10), GenerationOptions(max_tokens=12)
    alone = [engine.generate(prompt, options, raw=True) for prompt in turns.prompts[:3]]
    together = engine.batch(turns.prompts[:3], options, raw=True, parallel=2)
    assert [(one.text, one.tokens, one.finish_reason) for one in together] == [
        (one.text, one.tokens, one.finish_reason) for one in alone
    ]
    assert engine.batch([]) == []
    for wrong in ({"parallel": 0}, {"prompts": [[1, 2], []]}, {"prompts": [[1], [1 << 20]]}):
        with pytest.raises((OptionError, PromptError)):
            engine.batch(**{"prompts": [[1, 2]], "raw": True, **wrong})  # type: ignore[arg-type]
