"""What ranks say to each other, within this process: rank 0 and a follower joined by queues."""

from __future__ import annotations

import io
import json
import queue
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest

from mlxmtp import Engine, load
from mlxmtp.decoding.depth import FixedDepth, Observation, Plan
from mlxmtp.decoding.stats import Round
from mlxmtp.engine.follow import FollowedTurns
from mlxmtp.engine.in_step import StepPolicy, check_reuse, with_shared_seed
from mlxmtp.engine.prefix_cache import PrefixCache
from mlxmtp.engine.request import GenerationOptions
from mlxmtp.errors import CheckpointError, MlxmtpError, OptionError
from mlxmtp.ranks import OutOfStepError, Ranks, local_hosts
from mlxmtp.ranks.join import Follower
from mlxmtp.ranks.leader import Leader
from mlxmtp.targets.shard import shard

PROMPT = [20, 16, 13, 8, 9, 3, 4, 3, 6, 20, 16, 22]


class Piped:
    """In place of `OtherRank`: what is sent to it is what the follower reads."""

    def __init__(self) -> None:
        self.lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self.answers = io.BytesIO()

    def send(self, value: Any) -> None:
        self.lines.put(json.dumps(value).encode())

    def receive(self) -> Any:
        return json.loads(self.answers.getvalue().splitlines()[-1])


@pytest.fixture
def pair() -> tuple[Leader, Follower]:
    other = Piped()
    setup = {"rank": 1, "size": 2, "description": ""}
    return Leader(local_hosts(2), [other], None), Follower(setup, None, other.lines, other.answers)  # type: ignore[list-item, arg-type]


def test_plans_are_those_of_rank_0_and_other_tokens_end_the_follower(pair: tuple[Leader, Follower]) -> None:
    policies = [
        StepPolicy(ranks, FixedDepth(depth, max_lookup=depth)) for depth, ranks in zip((2, 3), pair, strict=True)
    ]
    assert [policy.max_lookup for policy in policies] == [2, 2]
    for policy in policies:
        policy.begin_turn([5, 6])
    assert [policy.plan([0, 0]) for policy in policies] == [[Plan(2)] * 2, [Plan(2)] * 2]
    for policy, token in zip(policies, (7, 8), strict=True):
        policy.observe([Observation(Round((token,), drafted=0, accepted=0, evaluations=1))])
    policies[0].plan()
    with pytest.raises(OutOfStepError, match="tokens differ"):
        policies[1].plan()


def test_a_prefix_cache_that_gives_something_else_ends_the_follower(pair: tuple[Leader, Follower]) -> None:
    leader, follower = pair
    check_reuse(leader, 12)
    with pytest.raises(OutOfStepError):
        check_reuse(follower, 11)


@pytest.fixture(scope="module")
def engines(raw_checkpoint: Callable[..., Path]) -> tuple[Engine, Engine]:
    """The same whole model twice, which needs no sums over ranks."""
    model = raw_checkpoint("qwen3_5", vocab=24, dtype="float32")
    return load(model), load(model)


OPTIONS = (
    {"depth": 2},
    {"temperature": 0.9, "depth": 3},
    {"temperature": 0.9, "seed": 5},
    {"repetition_penalty": 1.3, "depth": 1},
    {"depth": 0, "max_tokens": 20},
)


def test_other_ranks_take_every_step_of_rank_0(pair: tuple[Leader, Follower], engines: tuple[Engine, Engine]) -> None:
    """Shared rounds, a turn that is cancelled, one whose reader stops, and one that is stopped in its prompt."""

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    for engine, ranks in zip(engines, pair, strict=True):
        vars(engine).pop("_steps", None), vars(engine).pop("policies", None)
        engine.ranks = ranks
    engine, cache = engines[0], PrefixCache(1 << 20)
    scheduler = engine.scheduler(3, cache)
    for i, options in enumerate(OPTIONS):
        scheduler.add(
            i, engine.open_turn(PROMPT[i:], GenerationOptions(**{"max_tokens": 12, **options}), prefix_cache=cache)
        )
    steps = 0
    while not scheduler.idle:
        scheduler.step()
        steps += 1
        if steps == 9:
            scheduler.cancel(scheduler.active[0])
    stream = engine.stream(PROMPT, GenerationOptions(depth=2), prefix_cache=cache)
    begun = [token for _ in range(3) for token in next(stream).tokens]
    stream.close()  # type: ignore[attr-defined]
    with pytest.raises(KeyboardInterrupt):
        engine.generate([*PROMPT, *begun, 7, 8, 9], GenerationOptions(), on_prefill=stop, prefix_cache=cache)

    for _ in range(3):  # each with a prefix cache of its own, at an address that others may have had
        engine.batch([PROMPT, PROMPT[2:]], GenerationOptions(depth=1, max_tokens=4))

    followed, lines = FollowedTurns(engines[1]), pair[1]._lines
    while not lines.empty():
        followed.step(*pair[1].agree())  # it checks the tokens
    assert not followed._turns
    copy, *others = followed._caches.values()
    assert copy.stats == cache.stats
    assert len(others) < 3, "caches that rank 0 has dropped are dropped"
    assert cache.stats.reused_tokens > len(PROMPT)


def test_an_error_on_one_rank_is_one_on_all(pair: tuple[Leader, Follower]) -> None:
    def outcome(ranks: Ranks, error: str | None) -> Any:
        def action() -> int:
            if error:
                raise OptionError(error)
            return 1

        try:
            return ranks.together(action)
        except MlxmtpError as found:
            return type(found), str(found)

    leader, follower = pair
    own, other = (OptionError, "wrong"), (CheckpointError, "rank 1: wrong")
    for errors, expected in (
        ((None, None), [1, 1]),
        (("wrong", None), [own, (CheckpointError, "wrong")]),
        ((None, "wrong"), [other, own]),
    ):
        follower._answers.write(json.dumps(errors[1]).encode() + b"\n")  # it answers before rank 0 looks
        assert [outcome(leader, errors[0]), outcome(follower, errors[1])] == expected, errors


def test_a_seed_that_is_drawn_leaves_the_verification() -> None:
    options = GenerationOptions(temperature=1.0)
    shared = with_shared_seed(options)
    assert shared.seed is not None
    assert shared.verify == "block"
    chosen = GenerationOptions(temperature=1.0, seed=4)
    assert with_shared_seed(chosen) is chosen


class _Group:
    def size(self) -> int:
        return 3


class _Layer(nn.Module):
    def __init__(self, key_heads: int) -> None:
        super().__init__()
        self.n_heads, self.n_kv_heads = 6, key_heads


class _Divisible(nn.Module):
    def __init__(self, key_heads: int) -> None:
        super().__init__()
        self.layers = [_Layer(key_heads)]
        self.lm_head = nn.Linear(4, 4)

    def shard(self, group: Any) -> None:
        self.lm_head, self.sharding_group = nn.Linear(4, 1), group


def test_layers_are_divided_by_what_divides_their_heads_and_the_output_matrix_never_is() -> None:
    model = _Divisible(3)
    whole = model.lm_head
    shard(model, _Group(), "kind")
    assert model.lm_head is whole
    assert model.sharding_group is None
    assert mx.all(whole.weight == model.lm_head.weight)
    with pytest.raises(CheckpointError, match=r"cannot be divided among 3 ranks; expected .* divides n_kv_heads 4"):
        shard(_Divisible(4), _Group(), "kind")
    with pytest.raises(CheckpointError, match="mlx-lm cannot divide 'kind' among ranks"):
        shard(_Layer(3), _Group(), "kind")
