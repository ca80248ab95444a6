"""Turns that go back to a snapshot of an earlier turn give the tokens of turns that read the whole prompt."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlxmtp import Engine, GenerationOptions, load
from mlxmtp.decoding.sequence import Sequence as Tokens
from mlxmtp.targets import is_trimmable, leaf_caches
from tests.engine.kinds import EVERY, FEW, KINDS, find
from tests.engine.talk import SEEDED, Talk
from tests.grids import cases
from tests.running import prefilled, rounds
from tests.scripted import assert_same_state, snapshot


@pytest.fixture(scope="module", params=KINDS)
def any_engine(request: pytest.FixtureRequest, raw_checkpoint: Callable[..., Path]) -> Engine:
    return find(request.param, raw_checkpoint)


@pytest.fixture(scope="module", params=cases(EVERY, default=FEW))
def engine(request: pytest.FixtureRequest, raw_checkpoint: Callable[..., Path]) -> Engine:
    """For conversations, whose outcome depends on whether the caches can be cut anywhere."""
    return find(request.param, raw_checkpoint)


def talks(engine: Engine) -> list[Talk]:
    return [Talk(engine, sampling=SEEDED), Talk(engine, depth=0)]


# -- what conversations do ------------------------------------------------------------------------------------


@pytest.mark.exhaustive
def test_the_same_prompt_again(engine: Engine) -> None:
    for talk in [Talk(engine), *talks(engine)]:
        prompt = talk.words(70, 1)
        one = talk.says(prompt, 30, 66)
        for _ in range(2):
            assert talk.says(prompt, 30, 66) == one
            assert talk.reused == talk.back_to(66, len(prompt) - 1)
        assert talk.prefixes.stats.sequences == 1, "the answer that was thrown away is not kept"


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
        assert talk.prefixes.stats.sequences == 1


def test_an_earlier_message_is_edited(engine: Engine) -> None:
    """Both branches stay, and each goes on from where it was."""
    for talk in talks(engine):
        prompt, boundaries = talk.words(60, 1), []
        for number in range(3):
            boundaries.append(len(prompt) - 3)
            prompt = [*prompt, *talk.says(prompt, boundaries[-1]), *talk.words(20, number)]
        common = boundaries[1] + 5
        edited = [*prompt[:common], prompt[common] ^ 1, *talk.words(20, 7)]
        talk.says(edited, len(edited) - 3)
        assert talk.reused == talk.back_to(boundaries[1], common)
        assert talk.prefixes.stats.sequences == 2
        held = len(prompt) - 20
        talk.says(prompt, len(prompt) - 3)
        assert (talk.reused, talk.read) == (held, 20), "the other branch has lost nothing"
        longer = [*edited, *talk.says(edited, len(edited) - 3), 5, 6]
        talk.says(longer)
        assert talk.read == 2


def test_a_snapshot_of_a_text_that_was_changed_is_gone(engine: Engine) -> None:
    """A snapshot after the change belongs to the old text: a later prompt that shares the new text does not use it."""
    for talk in talks(engine):
        first = talk.words(60, 1)
        talk.says(first, 20, 50)
        changed = [*first[:30], first[30] ^ 1, *talk.words(40, 2)]
        talk.says(changed)
        talk.says([*changed[:60], changed[60] ^ 1, *talk.words(9, 3)])
        assert talk.reused == talk.back_to(20, 60)


@pytest.mark.exhaustive
def test_results_of_tools(engine: Engine) -> None:
    """Every step goes on from the last one's end, and later ones can go back to each."""
    talk = Talk(engine)
    prompt, boundaries = talk.words(60, 1), [20]
    for step in range(4):
        boundaries.append(len(prompt) - 3)
        answer = talk.says(prompt, 20, boundaries[-1])
        assert talk.read == (len(prompt) - 1 if not step else 11)
        prompt = [*prompt, *answer, *talk.words(11, step)]
    for mark in reversed(boundaries):
        changed = [*prompt[:mark], prompt[mark] ^ 1, *talk.words(8, 3)]
        talk.says(changed, 20)
        assert talk.reused == talk.back_to(mark, mark)


@pytest.mark.exhaustive
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


@pytest.mark.exhaustive
def test_with_the_head_and_without_by_turns(engine: Engine) -> None:
    """A plain turn does not extend the head's cache: a turn with drafts goes back to where the head has read."""
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


def test_caches_gone_back_are_those_of_a_fresh_read(any_engine: Engine) -> None:
    """To the last bit, and so are the logits that follow."""
    engine = any_engine
    talk, random = Talk(engine), np.random.default_rng(2)
    for number in range(4):
        prompt, mark = talk.words(80, number), int(random.integers(20, 75))
        one = Tokens(engine.target, engine.mtp)
        one.prefill(prompt, 16, boundaries=[mark])
        list(rounds(engine, one, int(random.integers(1, 12)), 3))
        changed = [*prompt[:mark], prompt[mark] ^ 1, *talk.words(int(random.integers(2, 60)), number)]
        position = one.prefix_info.longest_reusable_prefix(changed, drafting=True)
        assert position
        other = one.fork_at(changed, position, drafting=True)
        if number % 2:
            one.rewind(changed, position, drafting=True)
            other = one
        other.prefill(changed[len(other.tokens) :], 32)
        fresh = prefilled(engine, changed, 3)
        assert other.tokens == fresh.tokens
        assert_same_state(snapshot(other.cache), snapshot(fresh.cache))
        if engine.mtp and engine.mtp.has_kv_cache:
            assert_same_state(snapshot(other.head_cache), snapshot(fresh.head_cache))
        last = mx.array([changed[-1:]])
        logits = [engine.target.forward(last, sequence.cache)[0] for sequence in (other, fresh)]
        assert mx.array_equal(*logits)


def test_branches_go_their_own_ways(any_engine: Engine) -> None:
    """Both write in turns: neither sees the other's tokens, and later tokens change no snapshot."""
    engine = any_engine
    talk = Talk(engine)
    prompt = talk.words(70, 1)
    one = Tokens(engine.target, engine.mtp)
    one.prefill(prompt, boundaries=[40, 66])
    list(rounds(engine, one, 10, 3))
    changed = [*prompt[:40], *talk.words(12, 2)]
    position = one.prefix_info.longest_reusable_prefix(changed, drafting=True)
    assert position
    other = one.fork_at(changed, position, drafting=True)
    other.prefill(changed[len(other.tokens) :])
    ends = [list(one.tokens), changed]
    turns = [rounds(engine, sequence, 20, 3) for sequence in (one, other)]
    found: list[list[int]] = [[], []]
    for pair in zip(*turns, strict=False):
        for tokens, step in zip(found, pair, strict=True):
            tokens += step.tokens
    for tokens, end in zip(found, ends, strict=True):
        alone = prefilled(engine, end, 3)
        expected = [token for step in rounds(engine, alone, 20, 3) for token in step.tokens]
        assert tokens == expected[: len(tokens)]
        assert len(tokens) > 8
    again = one.fork_at(changed, position, drafting=True)
    again.prefill(changed[len(again.tokens) :])
    fresh = prefilled(engine, changed, 3)
    assert_same_state(snapshot(again.cache), snapshot(fresh.cache))


def test_without_marks_prompts_are_read_in_the_same_chunks(engine: Engine) -> None:
    """And with them, where the caches can be cut anywhere: the same chunks give the same bits on any device."""
    told: list[list[int]] = []
    prompt = Talk(engine).words(100, 1)
    for boundaries in ((), (10, 41, 95)):
        lengths = [0]
        sequence = Tokens(engine.target, engine.mtp)
        lengths += [done for done, _ in sequence.prefill_chunks(prompt, 32, boundaries)]
        told.append(lengths)
    assert told[0] == [0, 32, 64, 96, 99]
    free = all(map(is_trimmable, leaf_caches(engine.target.make_cache())))
    assert told[1] == (told[0] if free else [0, 10, 41, 73, 95, 99])
    assert [point.offset for point in sequence.snapshots] == ([] if free else [10, 41, 95])


def test_a_turn_that_is_closed_can_be_gone_back_from(hybrid: Engine) -> None:
    talk = Talk(hybrid)
    prompt = talk.words(60, 1)
    with closing(
        hybrid.stream(prompt, GenerationOptions(max_tokens=50), prefix_cache=talk.prefixes, boundaries=[55])
    ) as stream:
        next(stream)
        next(stream)
    talk.says(prompt, 55)
    assert talk.reused == 55


@pytest.mark.parametrize(("turns", "new"), cases([(5, 96), (12, 996)], default=[(5, 96)]))
def test_turns_of_an_agent(raw_checkpoint: Callable[..., Path], turns: int, new: int) -> None:
    """Each reads its new tokens only, whether the answer before came back as it was or not."""
    engine = load(raw_checkpoint("qwen3_5", dtype="float32", vocab=8, positions=32768))
    talk, told = Talk(engine), [(0, 0)]
    prompt: list[int] = talk.words(new, 0)
    held = back = 0
    for number in range(turns):
        mark = len(prompt)
        prompt = [*prompt, 3, 4, 5, 6]
        options = {"boundaries": [new // 2, mark], "on_prefill": lambda *now: told.append(now)}
        found = engine.generate(prompt, GenerationOptions(max_tokens=6), prefix_cache=talk.prefixes, **options)  # type: ignore[arg-type]
        if number:
            assert (found.stats.reused_tokens, told[-1][1]) == (held, len(prompt) - held - back)
        back = number % 2
        past = [*prompt[:mark], 7, 7] if back else [*prompt, *found.tokens]
        held = mark if back else len(past)
        prompt = [*past, *talk.words(new, number)]
    assert len(prompt) > turns * (new + 2)
    assert talk.prefixes.stats.sequences == 1
