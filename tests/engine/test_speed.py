"""The comparison with mlx-lm's plain decoding: what it measures, how it tells, and that nothing of it stays."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx
import pytest

from mlxmtp import Engine, GenerationOptions, OptionError, PromptError, load
from mlxmtp.decoding.sequence import Sequence
from mlxmtp.engine import speed
from mlxmtp.engine.speed import WARM_UP, Speed, compare

pytestmark = pytest.mark.exhaustive

PROMPT = [5, 6, 7, 5, 4]
TOKENS, REPEATS = 9, 2
TOTAL = 2 * (WARM_UP + REPEATS * TOKENS)


@pytest.fixture(scope="module")
def engine(raw_checkpoint: Callable[..., Path]) -> Engine:
    return load(raw_checkpoint("qwen3_5", dtype="float32", vocab=8, positions=64))


@pytest.fixture(scope="module")
def plain(raw_checkpoint: Callable[..., Path]) -> Engine:
    return load(raw_checkpoint("qwen3_5", dtype="float32", vocab=8, positions=64, head=False))


def measured(engine: Engine, sampling: GenerationOptions | None = None, depth: int | None = None) -> list[Speed]:
    return list(
        compare(engine, PROMPT, replace(sampling or GenerationOptions(), depth=depth), tokens=TOKENS, repeats=REPEATS)
    )


@pytest.mark.parametrize(
    ("depth", "sampling"),
    [
        (None, GenerationOptions()),
        (None, GenerationOptions(temperature=1.0, top_p=0.9, top_k=5, min_p=0.01)),
        (0, GenerationOptions(temperature=1.2)),
        (1, GenerationOptions(temperature=1.2, seed=3)),
    ],
    ids=str,
)
def test_a_measurement_grows_to_its_end(engine: Engine, depth: int | None, sampling: GenerationOptions) -> None:
    """Past end tokens, of which a sampled text of eight words is full."""
    steps = measured(engine, sampling, depth)
    assert {(step.depth, step.total) for step in steps} == {(depth, TOTAL)}
    done = [step.done for step in steps]
    assert done == sorted(set(done))
    assert (done[0], done[-1]) == (1, TOTAL)
    assert [len(step.plain) for step in steps] == [len(step.mtp) for step in steps], "rates come in pairs"
    assert sorted({len(step.plain) for step in steps}) == list(range(REPEATS + 1))
    last = steps[-1]
    assert len(last.plain) == len(last.mtp) == REPEATS
    assert all(rate > 0 for rate in last.plain + last.mtp)
    assert last.ratios == [ours / theirs for ours, theirs in zip(last.mtp, last.plain, strict=True)]


def test_rates_are_of_what_came_after_the_first_round(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that goes on by a second whenever it is looked at: once at the first round, then once a round."""
    clock = SimpleNamespace(perf_counter=itertools.count().__next__)
    monkeypatch.setattr(speed, "time", clock)
    assert {*measured(engine, depth=0)[-1].plain, *measured(engine, depth=0)[-1].mtp} == {1.0}
    last = measured(engine, depth=3)[-1]
    stats = engine.generate(PROMPT, GenerationOptions(max_tokens=TOKENS, depth=3)).stats
    first = next(engine.stream(PROMPT, GenerationOptions(max_tokens=TOKENS, depth=3))).stats.tokens
    assert last.plain == (1.0, 1.0)
    assert last.mtp == ((TOKENS - first) / (stats.rounds - 1),) * REPEATS


def test_a_model_without_a_head(plain: Engine) -> None:
    last = measured(plain)[-1]
    assert (last.depth, last.done, len(last.mtp)) == (None, TOTAL, REPEATS)


def test_each_run_goes_on_from_the_prompt(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways say the same, in every run: that of plain decoding."""
    expected = engine.generate(PROMPT, GenerationOptions(max_tokens=TOKENS, depth=0)).tokens
    texts: list[list[int]] = []

    def fork(sequence: Sequence) -> Sequence:
        twin = whole(sequence)
        texts.append(twin.tokens)
        return twin

    whole = Sequence.fork
    monkeypatch.setattr(Sequence, "fork", fork)
    measured(engine)
    ours = [tokens[len(PROMPT) :] for tokens in texts[1::2]]
    assert [len(tokens) for tokens in ours] == [WARM_UP, *[TOKENS] * REPEATS]
    assert all(tokens == expected[: len(tokens)] for tokens in ours)


def test_mlx_lm_is_given_the_whole_prompt(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    generate_step, tokens = speed.generate_step, []

    def listening(*args: object, **options: object) -> object:
        for token, law in generate_step(*args, **options):
            tokens.append(token)
            yield token, law

    monkeypatch.setattr(speed, "generate_step", listening)
    measured(engine)
    expected = engine.generate(PROMPT, GenerationOptions(max_tokens=TOKENS, depth=0)).tokens
    assert tokens == expected[:WARM_UP] + expected * REPEATS


def test_no_room_to_measure(engine: Engine) -> None:
    fits = [5] * (engine.context - TOKENS)
    assert next(compare(engine, fits, GenerationOptions(), tokens=TOKENS, repeats=1)).done == 1
    with pytest.raises(PromptError, match="the conversation has 56 of 64 tokens; no room to measure 9 more"):
        next(compare(engine, [*fits, 5], GenerationOptions(), tokens=TOKENS))
    with pytest.raises(PromptError, match="empty"):
        next(compare(engine, [], GenerationOptions()))


def test_a_depth_out_of_range(engine: Engine) -> None:
    for depth in (-1, 17):
        with pytest.raises(OptionError, match=f"depth is {depth}"):
            measured(engine, depth=depth)


def test_a_depth_without_a_head(plain: Engine) -> None:
    """As `Engine.stream` has it: what would be called depth 2 would be plain decoding."""
    with pytest.raises(OptionError, match="no MTP head"):
        measured(plain, depth=2)


@pytest.mark.parametrize("steps", [0, 1, WARM_UP, WARM_UP + 1, 2 * WARM_UP + TOKENS])
def test_whoever_reads_may_stop(engine: Engine, steps: int) -> None:
    """Among mlx-lm's runs and among ours, the engine is as it was."""
    expected = engine.generate(PROMPT, GenerationOptions(max_tokens=12)).tokens
    running = compare(engine, PROMPT, GenerationOptions(depth=1), tokens=TOKENS, repeats=REPEATS)
    for _ in range(steps):
        next(running)
    running.close()
    run = engine.generate(PROMPT, GenerationOptions(max_tokens=12))
    assert (run.tokens, engine.generate(PROMPT, GenerationOptions(max_tokens=12, depth=0)).tokens) == (
        expected,
        expected,
    )


def test_nothing_of_it_stays_in_memory(engine: Engine) -> None:
    measured(engine)
    mx.clear_cache()
    before = mx.get_active_memory()
    measured(engine)
    mx.clear_cache()
    assert mx.get_active_memory() <= before
