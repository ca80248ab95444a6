"""Turns that go back to a point of an earlier one say what they would say had everything been read anew."""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlxmtp import Engine, Sampling, load
from mlxmtp.chat.prefixes import PrefixCache
from mlxmtp.decoding.points import Outline, Place, Point, thinned
from mlxmtp.decoding.sequence import POINTS
from mlxmtp.decoding.sequence import Sequence as Tokens
from mlxmtp.targets import appends, parts
from tests.running import prefilled, rounds
from tests.scripted import assert_same_state, snapshot

TRAINED = Path(__file__).parent.parent / "trained"
KINDS = ("qwen3_5", "gemma4", "glm4_moe", "deepseek_v32")
"""Kinds of caches: recurrent states and rows; windows that wrap; rows; latents that are chosen."""
GREEDY, SEEDED = Sampling(), Sampling(1.0, seed=5)
PLENTY = 1 << 30


def find(kind: str, raw_checkpoint: Callable[..., Path]) -> Engine:
    return load(raw_checkpoint(kind, dtype="float32", vocab=8) if kind == "qwen3_5" else TRAINED / kind)


@pytest.fixture(scope="module", params=KINDS)
def engine(request: pytest.FixtureRequest, raw_checkpoint: Callable[..., Path]) -> Engine:
    return find(request.param, raw_checkpoint)


@pytest.fixture(scope="module")
def hybrid(raw_checkpoint: Callable[..., Path]) -> Engine:
    return find("qwen3_5", raw_checkpoint)


@dataclass
class Talk:
    """Turns of one engine with one cache; each is compared with the same turn of an engine that remembers nothing.

    `read`: of the newest turn, how many tokens were prefilled, by what `on_prefill` was told.
    """

    engine: Engine
    depth: int = 3
    sampling: Sampling = GREEDY
    prefixes: PrefixCache = field(default_factory=lambda: PrefixCache(PLENTY))
    read: int = 0
    reused: int = 0

    def words(self, count: int, seed: int) -> list[int]:
        vocabulary = self.engine.target.text_config["vocab_size"]
        return np.random.default_rng([seed, count]).integers(3, vocabulary, count).tolist()

    def says(self, prompt: list[int], *marks: int, count: int = 12, depth: int | None = None) -> list[int]:
        """The answer, which ends after `count` tokens or by itself."""
        depth = self.depth if depth is None else depth
        options = {"max_tokens": count, "depth": depth}
        expected = self.engine.generate(prompt, self.sampling, **options)  # type: ignore[arg-type]
        told = [(0, 0)]
        found = self.engine.generate(
            prompt,
            self.sampling,
            prefixes=self.prefixes,
            marks=marks,
            on_prefill=lambda *now: told.append(now),
            **options,  # type: ignore[arg-type]
        )
        assert found.tokens == expected.tokens
        stats, anew = found.stats, expected.stats
        assert (stats.rounds, stats.accepted) == (anew.rounds, anew.accepted), "the head knows the same past"
        self.read, self.reused = told[-1][1], stats.reused_tokens
        assert self.read + self.reused in (len(prompt), len(prompt) - 1), "the last token is for the first round"
        return found.tokens

    def back_to(self, mark: int, common: int) -> int:
        """Of `common` tokens, those that need not be read again when the last mark among them is `mark`."""
        if not all(map(appends, parts(self.engine.target.make_cache()))):
            return mark
        own_rows = self.depth and self.engine.mtp
        return common - bool(own_rows)


def talks(engine: Engine) -> list[Talk]:
    return [Talk(engine, sampling=SEEDED), Talk(engine, depth=0)]


# -- what conversations do ------------------------------------------------------------------------------------


def test_the_same_prompt_again(engine: Engine) -> None:
    for talk in [Talk(engine), *talks(engine)]:
        prompt = talk.words(70, 1)
        one = talk.says(prompt, 30, 66)
        for _ in range(2):
            assert talk.says(prompt, 30, 66) == one
            assert talk.reused == talk.back_to(66, len(prompt) - 1)
        assert talk.prefixes.figures.conversations == 1, "the answer that was thrown away is not kept"


def test_thinking_that_is_stripped_from_history(engine: Engine) -> None:
    """The newest answer comes back shorter: what was read before it stays read."""
    for talk in talks(engine):
        prompt, before = talk.words(70, 1), 0
        for number in range(3):
            mark = len(prompt) - 4
            answer = talk.says(prompt, 30, mark)
            if number:
                assert talk.reused == talk.back_to(before, before)
            before = mark
            prompt = [*prompt[:mark], prompt[mark] ^ 1, *answer[6:], *talk.words(9, number)]
        assert talk.prefixes.figures.conversations == 1


def test_an_earlier_message_is_edited(engine: Engine) -> None:
    """Both branches stay, and each goes on from where it was."""
    for talk in talks(engine):
        prompt, marks = talk.words(60, 1), []
        for number in range(3):
            marks.append(len(prompt) - 3)
            prompt = [*prompt, *talk.says(prompt, marks[-1]), *talk.words(20, number)]
        common = marks[1] + 5
        edited = [*prompt[:common], prompt[common] ^ 1, *talk.words(20, 7)]
        talk.says(edited, len(edited) - 3)
        assert talk.reused == talk.back_to(marks[1], common)
        assert talk.prefixes.figures.conversations == 2
        held = len(prompt) - 20
        talk.says(prompt, len(prompt) - 3)
        assert (talk.reused, talk.read) == (held, 20), "the other branch has lost nothing"
        longer = [*edited, *talk.says(edited, len(edited) - 3), 5, 6]
        talk.says(longer)
        assert talk.read == 2


def test_results_of_tools(engine: Engine) -> None:
    """Every step goes on from the last one's end, and later ones can go back to each."""
    talk = Talk(engine)
    prompt, marks = talk.words(60, 1), [20]
    for step in range(4):
        marks.append(len(prompt) - 3)
        answer = talk.says(prompt, 20, marks[-1])
        assert talk.read == (len(prompt) - 1 if not step else 11)
        prompt = [*prompt, *answer, *talk.words(11, step)]
    for mark in reversed(marks):
        changed = [*prompt[:mark], prompt[mark] ^ 1, *talk.words(8, 3)]
        talk.says(changed, 20)
        assert talk.reused == talk.back_to(mark, mark)


def test_another_conversation_under_the_same_head(engine: Engine) -> None:
    talk = Talk(engine)
    head = talk.words(50, 1)
    prompts = [[*head, 3 + number % 3, *talk.words(30, number)] for number in range(3)]
    for prompt in prompts:
        talk.says(prompt, 50, 78)
    assert talk.reused in (50, 49)
    for number, prompt in enumerate(prompts):
        answer = talk.says(prompt, 50, 78)
        talk.says([*prompt, *answer, 4, 5], 50)
        assert talk.read == 2, number


def test_with_the_head_and_without_by_turns(engine: Engine) -> None:
    """A plain turn leaves the head behind: a turn with it goes back to where it has read."""
    talk = Talk(engine)
    prompt, told = talk.words(60, 1), []
    for number, depth in enumerate([3, 0, 3, 0, 0, 3, 1, 0, 3]):
        talk.depth = depth
        answer = talk.says(prompt, len(prompt) - 3, depth=depth)
        told.append(talk.read)
        prompt = [*prompt, *answer, *talk.words(9, number)]
    plain = [told[i] for i in (1, 3, 4, 7)]
    assert plain == [9] * 4, "of any turn before"
    assert told[6] == 9, "another depth, the same head"
    assert all(told[i] < len(prompt) // 2 for i in (2, 5, 8)), "what the plain turns read, and no more"


def test_a_plain_conversation_is_of_no_use_to_the_head(hybrid: Engine) -> None:
    talk = Talk(hybrid)
    prompt = talk.words(60, 1)
    prompt += [*talk.says(prompt, 57, depth=0), 5, 6]
    talk.says(prompt)
    assert talk.reused == 0


def test_caches_gone_back_are_those_of_a_fresh_read(engine: Engine) -> None:
    """To the last bit, and so are the logits that follow."""
    talk, random = Talk(engine), np.random.default_rng(2)
    for number in range(6):
        prompt, mark = talk.words(80, number), int(random.integers(20, 75))
        one = Tokens(engine.target, engine.mtp)
        one.prefill(prompt, 16, marks=[mark])
        list(rounds(engine, one, int(random.integers(1, 30)), 3))
        changed = [*prompt[:mark], prompt[mark] ^ 1, *talk.words(int(random.integers(2, 60)), number)]
        place = one.outline.reach(changed, drafting=True)
        assert place
        other = one.branch(changed, place, drafting=True)
        if number % 2:
            one.resume(changed, place, drafting=True)
            other = one
        other.prefill(changed[len(other.tokens) :], 32)
        fresh = prefilled(engine, changed, 3)
        assert other.tokens == fresh.tokens
        assert_same_state(snapshot(other.cache), snapshot(fresh.cache))
        if engine.mtp and engine.mtp.own_rows:
            assert_same_state(snapshot(other.head_cache), snapshot(fresh.head_cache))
        last = mx.array([changed[-1:]])
        logits = [engine.target.forward(last, sequence.cache)[0] for sequence in (other, fresh)]
        assert mx.array_equal(*logits)


def test_branches_go_their_own_ways(engine: Engine) -> None:
    """By turns, both writing: neither sees the other's rows, nor does a point change with what came after it."""
    talk = Talk(engine)
    prompt = talk.words(70, 1)
    one = Tokens(engine.target, engine.mtp)
    one.prefill(prompt, marks=[40, 66])
    list(rounds(engine, one, 10, 3))
    changed = [*prompt[:40], *talk.words(12, 2)]
    place = one.outline.reach(changed, drafting=True)
    assert place
    other = one.branch(changed, place, drafting=True)
    other.prefill(changed[len(other.tokens) :])
    ends = [list(one.tokens), changed]
    turns = [rounds(engine, sequence, 40, 3) for sequence in (one, other)]
    found: list[list[int]] = [[], []]
    for pair in zip(*turns, strict=False):
        for tokens, step in zip(found, pair, strict=True):
            tokens += step.tokens
    for tokens, end in zip(found, ends, strict=True):
        alone = prefilled(engine, end, 3)
        expected = [token for step in rounds(engine, alone, 40, 3) for token in step.tokens]
        assert tokens == expected[: len(tokens)]
        assert len(tokens) > 15
    again = one.branch(changed, place, drafting=True)
    again.prefill(changed[len(again.tokens) :])
    fresh = prefilled(engine, changed, 3)
    assert_same_state(snapshot(again.cache), snapshot(fresh.cache))


# -- room -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["qwen3_5", "gemma4"])
def test_a_title_request_does_not_evict_the_conversation(kind: str, raw_checkpoint: Callable[..., Path]) -> None:
    """With room for two, the one that was used last but once goes when a third comes."""
    probe = Talk(find(kind, raw_checkpoint))
    main = probe.words(300, 1)
    probe.says(main, 200, 290)
    most = 2 * probe.prefixes.nbytes
    talk = Talk(probe.engine, prefixes=PrefixCache(most))
    for number in range(3):
        main = [*main, *talk.says(main, 200, len(main) - 5, count=4), *talk.words(12, number)]
        talk.says(talk.words(60, 50 + number), 50, count=4)
        assert talk.prefixes.nbytes <= most
    talk.says(main, count=4)
    assert talk.read == 12
    assert talk.prefixes.figures.evictions > 0, "titles of long ago"


@pytest.mark.parametrize("share", [0.0, 0.9, 1.3, 2.2])
def test_the_bound_holds_whatever_is_asked(hybrid: Engine, share: float) -> None:
    probe = Talk(hybrid)
    probe.says(probe.words(400, 0), 200, count=1)
    most = int(share * probe.prefixes.nbytes)
    talk = Talk(hybrid, prefixes=PrefixCache(most))
    conversations = [talk.words(count, count) for count in (400, 390, 280, 20)]
    for step, number in enumerate((0, 0, 1, 0, 2, 3, 3, 1)):
        prompt = conversations[number]
        prompt += [*talk.says(prompt, 200, len(prompt) - 3, count=4), *talk.words(5, step)]
        figures = talk.prefixes.figures
        assert figures.nbytes <= most
        assert figures.hits + figures.misses == step + 1
    assert bool(figures.hits) == (share > 0), "a short one at the least"


def test_a_copy_that_has_no_room_beside_its_source_takes_its_place(hybrid: Engine) -> None:
    talk = Talk(hybrid)
    prompt = talk.words(300, 1)
    talk.says(prompt, 250)
    talk.prefixes = PrefixCache(talk.prefixes.nbytes * 3 // 2)
    prompt += [*talk.says(prompt, 250), *talk.words(9, 1)]
    talk.says(prompt, len(prompt) - 2)
    edited = [*prompt[:260], prompt[260] ^ 1, 3, 4]
    talk.says(edited)
    assert talk.reused == 250
    assert talk.prefixes.figures.conversations == 1


def test_points_in_the_middle_go_before_conversations(hybrid: Engine) -> None:
    talk = Talk(hybrid)
    prompts = [talk.words(80, number) for number in range(2)]
    for prompt in prompts:
        talk.says(prompt, *range(10, 80, 10))
    figures = talk.prefixes.figures
    assert (figures.points, figures.conversations) == (14, 2)
    tight = PrefixCache(figures.nbytes * 3 // 4)
    talk.prefixes = tight
    for prompt in prompts:
        talk.says(prompt, *range(10, 80, 10))
    assert tight.figures.conversations == 2
    assert tight.figures.points < 14
    for prompt in prompts:
        talk.says([*prompt[:15], prompt[15] ^ 1, 3, 4])
        assert talk.reused == 10


def test_no_more_points_than_are_worth_it(hybrid: Engine) -> None:
    talk = Talk(hybrid)
    prompt = talk.words(40, 1)
    for step in range(POINTS + 8):
        prompt = [*prompt, *talk.says(prompt, 20, len(prompt) - 2, count=2), *talk.words(3, step)]
    assert talk.prefixes.figures.points == POINTS
    talk.says([*prompt[:20], prompt[20] ^ 1, 3])
    assert talk.reused == 20


@pytest.fixture(scope="module")
def wide(gemma_checkpoint: Callable[..., Path], assistant: Callable[..., Path]) -> Engine:
    """With windows of as many bytes that what holds them shows."""
    sizes = {"style": "31B", "window": 512}
    return load(gemma_checkpoint("gemma4", **sizes), head=assistant(**sizes))


def test_points_hold_no_more_than_their_bytes(wide: Engine) -> None:
    """A window's rows of a chunk that is longer than it, or a view of them, would hold far more than is counted."""
    sequence = Tokens(wide.target, wide.mtp)
    sequence.prefill(Talk(wide).words(1600, 1), marks=[1590])
    points = sequence.points
    counted = sum(point.nbytes for point in points)
    windows = 4 * 2 * 512 * 2 * 32 * 4  # layers, keys and values, rows, heads, dimensions, bytes
    assert windows < counted < 1.01 * windows
    del sequence
    mx.clear_cache()
    before = mx.get_active_memory()
    points.clear()
    mx.clear_cache()
    assert counted <= before - mx.get_active_memory() <= 1.1 * counted


def test_a_kept_turn_holds_no_more_than_its_bytes(wide: Engine) -> None:
    """What a round leaves to be computed would hold all of its rows, each with a window of its own."""
    talk, prompt = Talk(wide), Talk(wide).words(600, 1)
    mx.clear_cache()
    empty = mx.get_active_memory()
    with closing(wide.stream(prompt, max_tokens=30, depth=3, prefixes=talk.prefixes, marks=[40, 596])) as stream:
        assert next(stream).stats.drafted == 3
    mx.clear_cache()
    held, counted = mx.get_active_memory() - empty, talk.prefixes.nbytes
    assert counted > 1 << 20
    assert held <= 1.1 * counted


def test_without_marks_prompts_are_read_in_the_same_chunks(engine: Engine) -> None:
    """And with them, where the caches can be cut anywhere: the same chunks give the same bits on any device."""
    told: list[list[int]] = []
    prompt = Talk(engine).words(100, 1)
    for marks in ((), (10, 41, 95)):
        lengths = [0]
        sequence = Tokens(engine.target, engine.mtp)
        sequence.prefill(prompt, 32, lambda done, total: lengths.append(done), marks)  # noqa: B023
        told.append(lengths)
    assert told[0] == [0, 32, 64, 96, 99]
    free = all(map(appends, parts(engine.target.make_cache())))
    assert told[1] == (told[0] if free else [0, 10, 41, 73, 95, 99])
    assert [point.rows for point in sequence.points] == ([] if free else [10, 41, 95])


def test_a_turn_without_a_cache_keeps_no_points(hybrid: Engine) -> None:
    told: list[int] = []
    prompt = Talk(hybrid).words(100, 1)
    hybrid.generate(prompt, max_tokens=1, marks=[10], on_prefill=lambda done, total: told.append(done))
    assert told == [99]


# -- outlines and points --------------------------------------------------------------------------------------


def outline(appends: bool = False, head_rows: int | None = None, pending: int = 1) -> Outline:
    """Of 20 tokens, 19 of them read, with points behind 5 and 12."""
    places = tuple(Place(rows, pending) for rows in (5, 12))
    return Outline(list(range(20)), Place(19, pending), places, appends, head_rows)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ([*range(20), 99], 19),
        ([*range(20)], 19),
        ([*range(19), 99], 19),
        ([*range(19)], 12),
        ([*range(13)], 12),
        ([*range(12), 99], 12),
        ([*range(12)], 5),
        ([*range(5), 99, 98], 5),
        ([*range(4), 99, 98], 0),
        ([99], 0),
    ],
)
def test_the_furthest_place_that_a_prompt_shares(prompt: list[int], expected: int) -> None:
    for drafting in (False, True):
        place = outline(head_rows=18).reach(prompt, drafting=drafting)
        assert (place.rows if place else 0) == expected
    place = outline(appends=True).reach(prompt, drafting=False)
    shared = next((i for i, token in enumerate(prompt) if token != i), len(prompt))
    assert (place.rows if place else 0) == min(shared, len(prompt) - 1, 19)


@pytest.mark.parametrize(("head_rows", "expected"), [(None, 0), (3, 0), (5, 5), (11, 5), (12, 12), (16, 12)])
def test_without_a_hidden_state_the_head_has_to_have_read_as_much(head_rows: int | None, expected: int) -> None:
    kept = outline(head_rows=head_rows, pending=0)
    place = kept.reach([*range(15), 99, 98], drafting=True)
    assert (place.rows if place else 0) == expected
    place = kept.reach([*range(12), 99], drafting=True)
    assert (place.rows if place else 0) == min(expected, 5), "a token has to be left to make one from"


def points(*rows: int) -> list[Point]:
    return [Point(count, (), None) for count in rows]


@pytest.mark.parametrize(
    ("most", "marks", "expected"),
    [
        (9, (), [10, 100, 110, 200, 500]),
        (4, (), [10, 100, 200, 500]),
        (3, (), [10, 200, 500]),
        (2, (), [10, 500]),
        (0, (), [10, 500]),
        (4, (110,), [10, 110, 200, 500]),
        (3, (110, 100), [10, 100, 500]),
    ],
)
def test_the_points_that_matter_least_go_first(most: int, marks: Sequence[int], expected: list[int]) -> None:
    assert [point.rows for point in thinned(points(10, 100, 110, 200, 500), most, marks)] == expected


def test_a_turn_that_is_closed_can_be_gone_back_from(hybrid: Engine) -> None:
    talk = Talk(hybrid)
    prompt = talk.words(60, 1)
    with closing(hybrid.stream(prompt, max_tokens=50, prefixes=talk.prefixes, marks=[55])) as stream:
        next(stream)
        next(stream)
    talk.says(prompt, 55)
    assert talk.reused == 55


def test_twelve_turns_of_an_agent_with_twelve_thousand_tokens(raw_checkpoint: Callable[..., Path]) -> None:
    """Each reads its new tokens only, whether the answer before came back as it was or not."""
    engine = load(raw_checkpoint("qwen3_5", dtype="float32", vocab=8, positions=32768))
    talk, told = Talk(engine), [(0, 0)]
    prompt: list[int] = talk.words(996, 0)
    held = back = 0
    for number in range(12):
        mark = len(prompt)
        prompt = [*prompt, 3, 4, 5, 6]
        options = {"marks": [400, mark], "on_prefill": lambda *now: told.append(now)}
        found = engine.generate(prompt, max_tokens=6, prefixes=talk.prefixes, **options)  # type: ignore[arg-type]
        if number:
            assert (found.stats.reused_tokens, told[-1][1]) == (held, len(prompt) - held - back)
        back = number % 2
        past = [*prompt[:mark], 7, 7] if back else [*prompt, *found.tokens]
        held = mark if back else len(past)
        prompt = [*past, *talk.words(996, number)]
    assert len(prompt) > 12_000
    assert talk.prefixes.figures.conversations == 1
