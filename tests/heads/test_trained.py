"""Heads that were trained for minutes (scripts/train_tiny.py): they draft better than chance at every depth.

`tests/trained` holds one checkpoint of each kind, its trunk and head in 8 bits, and GSM8K examples (MIT, gsm8k_LICENSE)
that they have not seen.
"""

import math
from collections import Counter
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

import mlx.core as mx
import pytest
from mlx.utils import tree_map

from mlxmtp import Engine, load
from mlxmtp.decoding.stats import Round
from mlxmtp.engine import conventions
from mlxmtp.engine.conventions import try_conventions
from tests.grids import cases
from tests.running import generated, prefilled, reference, rounds

TRAINED = Path(__file__).parent.parent / "trained"
KINDS = ("gemma4", "glm4_moe", "deepseek_v3", "deepseek_v32", "step3p5", "mimo_v2_flash")
DEPTH, TOKENS = 3, 64


@pytest.fixture(scope="module", params=cases(KINDS, default=("gemma4", "glm4_moe")))
def engine(request: pytest.FixtureRequest) -> Engine:
    return load(TRAINED / request.param)


def prompts(engine: Engine) -> list[list[int]]:
    """The first halves of examples."""
    examples = (TRAINED / "held_out.txt").read_text().split("\n\n")[:4]
    return [engine.tokenizer.encode(text[: len(text) // 2]) for text in examples]


def turn(engine: Engine, prompt: list[int], depth: int) -> list[Round]:
    return list(rounds(engine, prefilled(engine, prompt, depth), TOKENS, depth))


@pytest.fixture(scope="module")
def turns(engine: Engine) -> list[list[Round]]:
    return [turn(engine, prompt, DEPTH) for prompt in prompts(engine)]


def whole(run: Iterable[Round], depth: int) -> list[Round]:
    """Without the last rounds of a turn, which have no room for all drafts."""
    return [one for one in run if one.drafted == depth]


def by_depth(run: list[Round]) -> list[tuple[int, int]]:
    """At each depth: how often the drafts before it stood, and how often it stood too."""
    return [(sum(one.accepted >= d for one in run), sum(one.accepted > d for one in run)) for d in range(DEPTH)]


def test_drafts_beat_chance_at_every_depth(turns: list[list[Round]]) -> None:
    """Chance: the best constant guess, the byte that is said most. By three standard errors of its share."""
    run = whole(chain.from_iterable(turns), DEPTH)
    said = Counter(token for one in run for token in one.tokens)
    chance = max(said.values()) / said.total()
    for depth, (tried, stood) in enumerate(by_depth(run), start=1):
        assert tried >= 20, depth
        assert stood / tried > chance + 3 * math.sqrt(chance * (1 - chance) / tried), (depth, stood, tried, chance)


@pytest.mark.exhaustive
def test_an_untrained_head_does_not(engine: Engine) -> None:
    """The bar above is one that a head can fail: the same head with random matrices of the same size."""
    assert engine.mtp is not None
    trained = engine.mtp.parameters()
    keys = iter(mx.random.split(mx.random.key(0), 1000))

    def shuffled(weight: mx.array) -> mx.array:
        return mx.random.permutation(weight, key=next(keys)) if weight.ndim > 1 else weight

    engine.mtp.update(tree_map(shuffled, trained))
    try:
        tried, stood = by_depth(whole(turn(engine, prompts(engine)[0], 1), 1))[0]
    finally:
        engine.mtp.update(trained)
    assert tried >= 50
    assert stood / tried < 0.25


def test_greedy_tokens_are_those_of_mlx_lm(engine: Engine, turns: list[list[Round]]) -> None:
    prompt = prompts(engine)[0]
    expected = reference(engine, prompt, TOKENS)
    assert [token for one in turns[0] for token in one.tokens] == expected
    assert generated(engine, prompt, TOKENS, 1) == expected


@pytest.mark.parametrize("engine", cases(KINDS, default=("gemma4",)), indirect=True)
def test_the_convention_of_training_is_not_beaten(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conventions, "STARTS", 4)
    default, *others = try_conventions(engine, prompts(engine)[0])
    assert default.default
    assert not any(other.clearly_beats(default) for other in others)
