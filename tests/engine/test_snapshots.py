"""How many snapshots are kept within a bound of bytes."""

from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import mlx.core as mx
import pytest

from mlxmtp import Engine, GenerationOptions, load
from mlxmtp.decoding.sequence import MAX_SNAPSHOTS
from mlxmtp.decoding.sequence import Sequence as Tokens
from mlxmtp.decoding.snapshots import Position, PrefixInfo, Snapshot, thin_out
from mlxmtp.engine.prefix_cache import PrefixCache
from tests.engine.kinds import PLENTY, find
from tests.engine.talk import Talk
from tests.grids import cases
from tests.running import prefilled, rounds
from tests.scripted import assert_same_state, snapshot

# -- room -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", cases(["qwen3_5", "gemma4"], default=["qwen3_5"]))
def test_a_title_request_does_not_evict_the_conversation(kind: str, raw_checkpoint: Callable[..., Path]) -> None:
    """With room for two, the one that was used last but once goes when a third comes."""
    probe = Talk(find(kind, raw_checkpoint))
    main = probe.words(150, 1)
    probe.says(main, 100, 140)
    most = 2 * probe.prefixes.nbytes
    talk = Talk(probe.engine, prefixes=PrefixCache(most))
    for number in range(3):
        main = [*main, *talk.says(main, 100, len(main) - 5, count=4), *talk.words(12, number)]
        talk.says(talk.words(60, 50 + number), 50, count=4)
        assert talk.prefixes.nbytes <= most
    talk.says(main, count=4)
    assert talk.read == 12
    assert talk.prefixes.stats.evictions > 0, "titles of long ago"


@pytest.mark.exhaustive
@pytest.mark.parametrize("share", cases([0.0, 0.9, 1.3, 2.2], default=(0.9,)))
def test_the_bound_holds_whatever_is_asked(hybrid: Engine, share: float) -> None:
    probe = Talk(hybrid)
    probe.says(probe.words(400, 0), 200, count=1)
    most = int(share * probe.prefixes.nbytes)
    talk = Talk(hybrid, prefixes=PrefixCache(most))
    conversations = [talk.words(count, count) for count in (400, 390, 280, 20)]
    for step, number in enumerate((0, 0, 1, 0, 2, 3, 3, 1)):
        prompt = conversations[number]
        prompt += [*talk.says(prompt, 200, len(prompt) - 3, count=2), *talk.words(5, step)]
        figures = talk.prefixes.stats
        assert figures.nbytes <= most
        assert figures.hits + figures.misses == step + 1
    assert bool(figures.hits) == (share > 0), "a short one at the least"


def test_a_copy_that_has_no_room_beside_its_source_takes_its_place(hybrid: Engine) -> None:
    talk = Talk(hybrid)
    prompt = talk.words(150, 1)
    talk.says(prompt, 125)
    talk.prefixes = PrefixCache(talk.prefixes.nbytes * 3 // 2)
    prompt += [*talk.says(prompt, 125), *talk.words(9, 1)]
    talk.says(prompt, len(prompt) - 2)
    edited = [*prompt[:130], prompt[130] ^ 1, 3, 4]
    talk.says(edited)
    assert talk.reused == 125
    assert talk.prefixes.stats.sequences == 1


def test_snapshots_in_the_middle_go_before_conversations(hybrid: Engine) -> None:
    talk = Talk(hybrid)
    prompts = [talk.words(80, number) for number in range(2)]
    for prompt in prompts:
        talk.says(prompt, *range(10, 80, 10))
    figures = talk.prefixes.stats
    assert (figures.snapshots, figures.sequences) == (14, 2)
    tight = PrefixCache(figures.nbytes * 3 // 4)
    talk.prefixes = tight
    for prompt in prompts:
        talk.says(prompt, *range(10, 80, 10))
    assert tight.stats.sequences == 2
    assert tight.stats.snapshots < 14
    for prompt in prompts:
        talk.says([*prompt[:15], prompt[15] ^ 1, 3, 4])
        assert talk.reused == 10


def test_no_more_snapshots_than_the_bound(hybrid: Engine) -> None:
    talk = Talk(hybrid)
    prompt = talk.words(40, 1)
    for step in range(MAX_SNAPSHOTS + 2):
        prompt = [*prompt, *talk.says(prompt, 20, len(prompt) - 2, count=2), *talk.words(3, step)]
    assert talk.prefixes.stats.snapshots == MAX_SNAPSHOTS
    talk.says([*prompt[:20], prompt[20] ^ 1, 3])
    assert talk.reused == 20


def test_a_change_within_a_long_message_costs_what_comes_after_it(hybrid: Engine) -> None:
    """Up to twice that and a chunk. Without chunks inside the message, all of it would be read again."""
    prompt, end = Talk(hybrid).words(300, 1), 260
    options = GenerationOptions(max_tokens=4, depth=3)
    for back, chunk in [(3, 16), (100, 16), (40, 512)]:
        changed = [*prompt[: end - back], prompt[end - back] ^ 1, *prompt[end - back + 1 :]]
        prefixes = PrefixCache(PLENTY)
        for one in (prompt, changed):
            found = hybrid.generate(
                one, options, prefix_cache=prefixes, prefill_tokens=chunk, boundaries=[end, 280, 290]
            )
        assert all(len(one.snapshots) <= MAX_SNAPSHOTS for one in prefixes._sequences)
        fresh = prefilled(hybrid, changed, 3, chunk)
        assert found.tokens == [token for item in rounds(hybrid, fresh, 4, 3) for token in item.tokens]
        assert_same_state(snapshot(prefixes._sequences[-1].cache), snapshot(fresh.cache), back)
        reused = found.stats.reused_tokens
        assert end - 2 * back - chunk <= reused <= end - back
        assert bool(reused) == (chunk == 16), "all of it, as before"


def test_under_pressure_what_is_inside_messages_goes_first(hybrid: Engine) -> None:
    prompt, options = Talk(hybrid).words(400, 1), GenerationOptions(max_tokens=1)
    probe = PrefixCache(PLENTY)
    hybrid.generate(prompt, options, prefix_cache=probe, prefill_tokens=32, boundaries=[300, 350, 380])
    (sequence,) = probe._sequences
    assert [one.offset for one in sequence.snapshots] == [64, 192, 256, 288, 300, 350, 380]
    assert [one.within for one in sequence.snapshots] == [True] * 4 + [False] * 3
    tight = PrefixCache(probe.nbytes - 1)
    tight.insert(sequence)
    assert [one.offset for one in sequence.snapshots] == [300, 350, 380]
    tight.max_bytes = tight.nbytes - 1
    tight.evict()
    assert [one.offset for one in sequence.snapshots] == [300, 380]


@pytest.fixture(scope="module")
def wide(gemma_checkpoint: Callable[..., Path], assistant: Callable[..., Path]) -> Engine:
    """With windows of as many bytes that what holds them shows."""
    sizes = {"style": "31B", "window": 256}
    return load(gemma_checkpoint("gemma4", **sizes), head=assistant(**sizes))


@pytest.mark.exhaustive
def test_snapshots_hold_no_more_than_their_bytes(wide: Engine) -> None:
    """A window's rows of a chunk that is longer than it, or a view of them, would hold far more than is counted."""
    sequence = Tokens(wide.target, wide.mtp)
    sequence.prefill(Talk(wide).words(800, 1), boundaries=[790])
    points = sequence.snapshots
    counted = sum(point.nbytes for point in points)
    windows = 4 * 2 * 256 * 2 * 32 * 4  # layers, keys and values, rows, heads, dimensions, bytes
    assert windows < counted < 1.01 * windows
    del sequence
    mx.clear_cache()
    before = mx.get_active_memory()
    points.clear()
    mx.clear_cache()
    assert counted <= before - mx.get_active_memory() <= 1.1 * counted


def test_a_kept_turn_holds_no_more_than_its_bytes(wide: Engine) -> None:
    """What a round leaves to be computed would hold all of its rows, each with a window of its own."""
    talk, prompt = Talk(wide), Talk(wide).words(300, 1)
    mx.clear_cache()
    empty = mx.get_active_memory()
    with closing(
        wide.stream(prompt, GenerationOptions(max_tokens=30, depth=3), prefix_cache=talk.prefixes, boundaries=[40, 296])
    ) as stream:
        assert next(stream).stats.drafted == 3
    mx.clear_cache()
    held, counted = mx.get_active_memory() - empty, talk.prefixes.nbytes
    assert counted > 1 << 19
    assert held <= 1.1 * counted


def test_a_turn_without_a_cache_keeps_no_points(hybrid: Engine) -> None:
    told: list[int] = []
    prompt = Talk(hybrid).words(100, 1)
    hybrid.generate(
        prompt, GenerationOptions(max_tokens=1), boundaries=[10], on_prefill=lambda done, total: told.append(done)
    )
    assert told == [99]


# -- outlines and points --------------------------------------------------------------------------------------


def prefix_info(trimmable: bool = False, head_offset: int | None = None, pending: int = 1) -> PrefixInfo:
    """Return a sequence of 20 tokens, 19 of them read, with snapshots after 5 and 12."""
    positions = tuple(Position(rows, pending) for rows in (5, 12))
    return PrefixInfo(list(range(20)), Position(19, pending), positions, trimmable, head_offset)


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
        position = prefix_info(head_offset=18).longest_reusable_prefix(prompt, drafting=drafting)
        assert (position.offset if position else 0) == expected
    position = prefix_info(trimmable=True).longest_reusable_prefix(prompt, drafting=False)
    shared = next((i for i, token in enumerate(prompt) if token != i), len(prompt))
    assert (position.offset if position else 0) == min(shared, len(prompt) - 1, 19)


@pytest.mark.parametrize(("head_offset", "expected"), [(None, 0), (3, 0), (5, 5), (11, 5), (12, 12), (16, 12)])
def test_without_a_hidden_state_the_head_has_to_have_read_as_much(head_offset: int | None, expected: int) -> None:
    kept = prefix_info(head_offset=head_offset, pending=0)
    position = kept.longest_reusable_prefix([*range(15), 99, 98], drafting=True)
    assert (position.offset if position else 0) == expected
    position = kept.longest_reusable_prefix([*range(12), 99], drafting=True)
    assert (position.offset if position else 0) == min(expected, 5), "a token has to be left to make one from"


def points(*rows: int) -> list[Snapshot]:
    return [Snapshot(count, (), None) for count in rows]


@pytest.mark.parametrize(
    ("most", "boundaries", "expected"),
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
def test_the_points_that_matter_least_go_first(most: int, boundaries: Sequence[int], expected: list[int]) -> None:
    assert [point.offset for point in thin_out(points(10, 100, 110, 200, 500), most, boundaries)] == expected
