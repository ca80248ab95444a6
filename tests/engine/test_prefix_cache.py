"""Turns that reuse the caches of earlier turns give the tokens of turns that read the whole prompt."""

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mlxmtp import Engine, GenerationOptions, PromptError
from mlxmtp.decoding.sequence import Sequence
from mlxmtp.decoding.stats import Stats
from mlxmtp.engine.prefix_cache import PrefixCache
from tests.engine import kinds
from tests.engine.kinds import FEW, PLENTY, find, words
from tests.grids import cases
from tests.running import generated, prefilled, rounds

KINDS = (*kinds.KINDS, "deepseek_v3")  # its latents too
GREEDY, SEEDED = GenerationOptions(), GenerationOptions(temperature=1.0, seed=5)
COUNT = 9

Turn = tuple[list[int], Stats]


def cache() -> PrefixCache:
    """With room for everything."""
    return PrefixCache(PLENTY)


@pytest.fixture(scope="module", params=KINDS)
def any_engine(request: pytest.FixtureRequest, raw_checkpoint: Callable[..., Path]) -> Engine:
    return find(request.param, raw_checkpoint)


@pytest.fixture(scope="module", params=cases(KINDS, default=FEW))
def engine(request: pytest.FixtureRequest, raw_checkpoint: Callable[..., Path]) -> Engine:
    return find(request.param, raw_checkpoint)


def turn(
    engine: Engine,
    prompt: list[int],
    prefixes: PrefixCache | None = None,
    *,
    depth: int = 3,
    sampling: GenerationOptions = GREEDY,
    count: int = COUNT,
    chunks: int | None = None,
) -> Turn:
    """Tokens and statistics of a turn, ended by its reader after so many chunks."""
    tokens: list[int] = []
    with closing(
        engine.stream(prompt, replace(sampling, max_tokens=count, depth=depth), prefix_cache=prefixes)
    ) as stream:
        for number, chunk in enumerate(stream, start=1):
            tokens += chunk.tokens
            if number == chunks:
                break
    return tokens, chunk.stats


def drafting(stats: Stats) -> tuple[int, int, int]:
    """How the drafts went: another past of the head's, even of one row, and they would go otherwise."""
    return stats.rounds, stats.drafted, stats.accepted


@pytest.mark.parametrize(
    "sampling", [SEEDED, pytest.param(GREEDY, marks=pytest.mark.exhaustive)], ids=["seeded", "greedy"]
)
def test_a_conversation_goes_on_as_if_read_anew(any_engine: Engine, sampling: GenerationOptions) -> None:
    engine = any_engine
    with_mtp, plain = cache(), cache()
    prompt, held, accepted = words(engine, 13), 0, 0
    for number in range(3):
        expected, anew = turn(engine, prompt, sampling=sampling)
        tokens, stats = turn(engine, prompt, with_mtp, sampling=sampling)
        assert tokens == expected
        assert (stats.prompt_tokens, stats.reused_tokens, anew.reused_tokens) == (len(prompt), held, 0)
        assert drafting(stats) == drafting(anew)
        tokens, stats = turn(engine, prompt, plain, sampling=sampling, depth=0)
        assert tokens == expected
        assert (stats.reused_tokens, stats.drafted) == (held, 0)
        held = len(prompt) + len(tokens)
        prompt = prompt + tokens + words(engine, (7, 1)[number % 2], seed=number)
        accepted += anew.accepted
    assert accepted, "with a head that never agrees, this would prove little"


def test_after_a_turn_that_was_closed(engine: Engine) -> None:
    """The reader closes the stream: the caches hold all tokens that it got, and go to the prefix cache."""
    for depth, chunks in ((0, 1), (3, 1), (3, 3)):
        prefixes, prompt = cache(), words(engine, 13)
        tokens, stats = turn(engine, prompt, prefixes, depth=depth, count=100, chunks=chunks)
        assert stats.rounds == chunks
        kept = len(prompt) + len(tokens)
        prompt = prompt + tokens + words(engine, 5)
        expected, anew = turn(engine, prompt, depth=depth, count=10)
        tokens, stats = turn(engine, prompt, prefixes, depth=depth, count=10)
        assert tokens == expected
        assert (stats.reused_tokens, drafting(stats)) == (kept, drafting(anew)), f"depth {depth}, {chunks} chunks"


@pytest.mark.parametrize("count", [1, 2])
def test_after_a_turn_cut_by_its_length(hybrid: Engine, count: int) -> None:
    prefixes, prompt = cache(), words(hybrid, 13)
    for _ in range(3):
        tokens, _ = turn(hybrid, prompt, prefixes, count=count)
        assert len(tokens) == count
        kept, prompt = len(prompt) + count, prompt + tokens + words(hybrid, 1)
    tokens, stats = turn(hybrid, prompt, prefixes)
    assert (tokens, stats.reused_tokens) == (turn(hybrid, prompt)[0], kept)


def test_a_prompt_is_read_in_chunks_behind_what_is_kept(hybrid: Engine) -> None:
    prefixes, prompt = cache(), words(hybrid, 13)
    tokens, _ = turn(hybrid, prompt, prefixes)
    kept, prompt = len(prompt) + len(tokens), prompt + tokens + words(hybrid, 40)
    expected, anew = turn(hybrid, prompt)
    told: list[tuple[int, int]] = []
    chunks = list(
        hybrid.stream(
            prompt,
            GenerationOptions(max_tokens=COUNT, depth=3),
            prefill_tokens=16,
            on_prefill=lambda *now: told.append(now),
            prefix_cache=prefixes,
        )
    )
    assert [token for chunk in chunks for token in chunk.tokens] == expected
    assert drafting(chunks[-1].stats) == drafting(anew)
    new = len(prompt) - kept
    assert told == [(16, new), (32, new), (new, new)]


def test_another_depth_starts_anew_where_the_head_has_read_nothing(hybrid: Engine) -> None:
    """A turn without drafts does not extend the head's cache, and can continue any sequence. Two depths share all."""
    prefixes, prompt = cache(), words(hybrid, 13)
    for before, depth in ((3, 0), (0, 3), (3, 1)):
        tokens, stats = turn(hybrid, prompt, prefixes, depth=before, count=8)
        held = len(prompt) + len(tokens)
        prompt = prompt + tokens + words(hybrid, 3)
        expected, anew = turn(hybrid, prompt, depth=depth, count=8)
        tokens, stats = turn(hybrid, prompt, prefixes, depth=depth, count=8)
        assert tokens == expected
        assert drafting(stats) == drafting(anew)
        assert stats.reused_tokens == (0 if depth > before == 0 else held)
        prompt = prompt + tokens + words(hybrid, 3)


@pytest.mark.parametrize(
    ("other", "reused"), [("shorter", 0), ("the same", -1), ("changed early", 0), ("changed late", -1), ("another", 0)]
)
def test_a_prompt_without_marks_that_does_not_go_on(hybrid: Engine, other: str, reused: int) -> None:
    """All rows but the last token's can be of use, or none: this model's states cannot go back."""
    prefixes, prompt = cache(), words(hybrid, 13)
    tokens, _ = turn(hybrid, prompt, prefixes)
    whole = prompt + tokens
    changed = {
        "shorter": whole[:-1],
        "the same": whole,
        "changed early": [*whole[:2], (whole[2] + 1) % 8, *whole[3:], 5],
        "changed late": [*whole[:-1], (whole[-1] + 1) % 8, 5],
        "another": words(hybrid, 40, seed=9),
    }[other]
    expected, _ = turn(hybrid, changed)
    tokens, stats = turn(hybrid, changed, prefixes)
    assert (tokens, stats.reused_tokens) == (expected, reused and len(whole) + reused)
    prompt = changed + tokens + [5]
    tokens, stats = turn(hybrid, prompt, prefixes)
    assert (tokens, stats.reused_tokens) == (turn(hybrid, prompt)[0], len(prompt) - 1), "the new one is kept"


def test_one_token_more_goes_on(hybrid: Engine) -> None:
    prefixes, prompt = cache(), words(hybrid, 13)
    prompt += [*turn(hybrid, prompt, prefixes)[0], 5]
    tokens, stats = turn(hybrid, prompt, prefixes)
    assert (tokens, stats.reused_tokens) == (turn(hybrid, prompt)[0], len(prompt) - 1)


class _HaltError(Exception):
    pass


def halt_at(call: int) -> Callable[[int, int], None]:
    calls: list[int] = []

    def on_prefill(done: int, total: int) -> None:
        calls.append(done)
        if len(calls) == call:
            raise _HaltError

    return on_prefill


@pytest.mark.parametrize(("depth", "call", "again"), [(0, 1, "more"), (3, 3, "the same"), (3, 2, "another end")])
def test_a_turn_halted_in_its_prompt_leaves_what_was_read(engine: Engine, call: int, depth: int, again: str) -> None:
    """A client that asks again, with the same prompt or another, does not wait for all of it a second time."""
    prefixes, prompt = cache(), words(engine, 13)
    prompt = prompt + turn(engine, prompt, prefixes, depth=depth)[0]
    held, prompt = len(prompt) - 1, prompt + words(engine, 25)
    stream = engine.stream(
        prompt, GenerationOptions(depth=depth), on_prefill=halt_at(call), prefill_tokens=8, prefix_cache=prefixes
    )
    with pytest.raises(_HaltError):
        list(stream)
    next_one = {
        "the same": prompt,
        "more": prompt + words(engine, 3),
        "another end": prompt[: held + 24] + words(engine, 6),
    }[again]
    expected, anew = turn(engine, next_one, depth=depth, count=8)
    tokens, stats = turn(engine, next_one, prefixes, depth=depth, count=8)
    assert (tokens, stats.reused_tokens, drafting(stats)) == (expected, held + 8 * call, drafting(anew))


def test_a_turn_that_nobody_began_leaves_nothing_wrong(hybrid: Engine) -> None:
    prefixes, prompt = cache(), words(hybrid, 13)
    prompt = prompt + turn(hybrid, prompt, prefixes)[0] + words(hybrid, 5)
    hybrid.stream(prompt, prefix_cache=prefixes).close()  # type: ignore[attr-defined]
    tokens, stats = turn(hybrid, prompt, prefixes)
    assert (tokens, stats.reused_tokens) == (turn(hybrid, prompt)[0], len(prompt) - 5)


def test_an_accident_among_the_rounds_leaves_nothing(hybrid: Engine) -> None:
    prefixes, prompt = cache(), words(hybrid, 13)
    prompt = prompt + turn(hybrid, prompt, prefixes)[0] + words(hybrid, 5)
    stream = hybrid.stream(prompt, GenerationOptions(max_tokens=COUNT), prefix_cache=prefixes)
    tokens = next(stream).tokens
    with pytest.raises(_HaltError):
        stream.throw(_HaltError())  # type: ignore[attr-defined]
    prompt = [*prompt, *tokens, *words(hybrid, 5)]
    again, stats = turn(hybrid, prompt, prefixes)
    assert (again, stats.reused_tokens) == (turn(hybrid, prompt)[0], 0)


def test_a_turn_closed_late_vouches_for_itself_only(hybrid: Engine) -> None:
    """A traceback can hold an abandoned turn for a while: it is closed when another one has failed meanwhile."""
    prefixes, prompt = cache(), words(hybrid, 13)
    abandoned = hybrid.stream(prompt, GenerationOptions(max_tokens=COUNT), prefix_cache=prefixes)
    said = list(next(abandoned).tokens)
    newer = words(hybrid, 20, seed=1)
    failing = hybrid.stream(newer, GenerationOptions(max_tokens=COUNT), prefix_cache=prefixes)
    next(failing)
    with pytest.raises(_HaltError):
        failing.throw(_HaltError())  # type: ignore[attr-defined]
    abandoned.close()  # type: ignore[attr-defined]
    for begun, held in ((newer, 0), (prompt + said, len(prompt + said))):
        longer = begun + words(hybrid, 3)
        tokens, stats = turn(hybrid, longer, prefixes)
        assert (tokens, stats.reused_tokens) == (turn(hybrid, longer)[0], held)


def test_a_refused_prompt_costs_nothing(hybrid: Engine) -> None:
    prefixes, prompt = cache(), words(hybrid, 13)
    prompt = prompt + turn(hybrid, prompt, prefixes)[0]
    for bad in ([], [-1], [5] * hybrid.context):
        with pytest.raises(PromptError):
            hybrid.stream(bad, prefix_cache=prefixes)
    assert turn(hybrid, [*prompt, 5], prefixes)[1].reused_tokens == len(prompt)


def test_its_bytes_are_those_of_the_caches(hybrid: Engine) -> None:
    prefixes, prompt = cache(), words(hybrid, 13)
    assert prefixes.nbytes == 0
    tokens, _ = turn(hybrid, prompt, prefixes)
    short = prefixes.nbytes
    assert short > 0
    turn(hybrid, prompt + tokens + words(hybrid, 300), prefixes, count=1)  # rows come in steps of 256
    long = prefixes.nbytes
    assert long > short
    turn(hybrid, words(hybrid, 14), prefixes, count=1)
    assert long + short // 2 < prefixes.nbytes < long + 2 * short, "of both conversations"
    prefixes.clear()
    assert prefixes.nbytes == 0


# -- forks ----------------------------------------------------------------------------------------------------


def tokens_of(turns: list[Iterator[Any]]) -> list[list[int]]:
    """The tokens of several sequences, a round of each in turn."""
    found: list[list[int]] = [[] for _ in turns]
    running = list(enumerate(turns))
    while running:
        for number, one in list(running):
            if step := next(one, None):
                found[number] += step.tokens
            else:
                running.remove((number, one))
    return found


def drafted(engine: Engine, sequence: Sequence, count: int) -> list[tuple[tuple[int, ...], int, int]]:
    return [(one.tokens, one.drafted, one.accepted) for one in rounds(engine, sequence, count, 3)]


def test_twins_go_their_own_ways(any_engine: Engine) -> None:
    """Fork and source decode in turns, with different tokens, each as a sequence that was never forked."""
    engine = any_engine
    one = prefilled(engine, words(engine, 30), 3)
    list(rounds(engine, one, 12, 3))
    other, third = one.fork(), one.fork()
    past, ends = list(one.tokens), (words(engine, 4, seed=1), words(engine, 6, seed=2))
    assert ends[0] != ends[1][:4]
    for sequence, end in zip((one, other), ends, strict=True):
        sequence.prefill(end)
    both = tokens_of([rounds(engine, sequence, 12, 3) for sequence in (one, other)])
    for found, end, sequence in zip(both, ends, (one, other), strict=True):
        assert found == generated(engine, past + end, 12, depth=0)
        assert sequence.tokens == past + end + found
    assert third.tokens == past
    third.prefill(ends[0])
    alone = prefilled(engine, past + ends[0], 3)
    assert drafted(engine, third, 12) == drafted(engine, alone, 12), "its head knows the same past"


def test_twins_part_behind_a_prompt(hybrid: Engine) -> None:
    for depth in (0, 3):
        one = prefilled(hybrid, words(hybrid, 40), depth)
        other, past = one.fork(), list(one.tokens)
        other.prefill([5, 6])
        found = tokens_of([rounds(hybrid, sequence, 10, depth) for sequence in (one, other)])
        assert found == [generated(hybrid, end, 10, depth=3 - depth) for end in (past, [*past, 5, 6])], depth
