"""What ranks say to each other, within this process: rank 0 and a follower joined by queues."""

from __future__ import annotations

import io
import json
import queue
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest

from mlxmtp.decoding.depth import FixedDepth, Observation, Plan
from mlxmtp.decoding.stats import Round
from mlxmtp.engine.in_step import StepPolicy, check_reuse, in_step, prefill_in_step, with_shared_seed
from mlxmtp.engine.request import GenerationOptions
from mlxmtp.errors import CheckpointError, MlxmtpError, OptionError
from mlxmtp.ranks import OutOfStepError, Ranks, local_hosts
from mlxmtp.ranks.join import Follower
from mlxmtp.ranks.leader import Leader
from mlxmtp.targets.shard import shard


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


def test_a_turn_ends_where_the_reader_of_rank_0_stops(pair: tuple[Leader, Follower]) -> None:
    ended: list[str] = []

    def chunks(name: str) -> Any:
        try:
            yield from range(9)
        finally:
            ended.append(name)

    leader, follower = pair
    read = in_step(leader, chunks("leader"), ["turn", []])
    assert [next(read) for _ in range(3)] == [0, 1, 2]
    read.close()  # type: ignore[attr-defined]
    assert follower.agree() == ["turn", []]
    assert list(in_step(follower, chunks("follower"), [])) == [0, 1, 2]
    assert ended == ["leader", "follower"]


def test_a_prompt_ends_where_rank_0_stops_it(pair: tuple[Leader, Follower]) -> None:
    def stop(done: int, total: int) -> None:
        if done == total:
            raise KeyboardInterrupt

    leader, follower = (prefill_in_step(ranks, stop) for ranks in pair)
    leader(1, 2)
    follower(2, 2)
    with pytest.raises(KeyboardInterrupt):
        leader(2, 2)
    with pytest.raises(Exception, match="rank 0 has ended the turn"):
        follower(1, 2)


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


def test_only_rank_0_draws_a_seed_and_the_verification_stays(pair: tuple[Leader, Follower]) -> None:
    options = GenerationOptions(temperature=1.0)
    shared = with_shared_seed(pair[0], options)
    assert shared.seed is not None
    assert shared.verify == "block"
    assert with_shared_seed(pair[1], shared) is shared
    chosen = GenerationOptions(temperature=1.0, seed=4)
    assert with_shared_seed(pair[0], chosen) is chosen


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
