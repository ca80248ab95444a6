"""Drafts that are looked up in the text: the tokens stay those of plain decoding, whatever they are and however many.

Equal means bit for bit, as in test_loop.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import mlx.core as mx
import pytest

from mlxmtp import load
from mlxmtp.decoding.auto_depth import AutoDepth
from mlxmtp.decoding.depth import PLAIN, DepthPolicy, FixedDepth, Observation, Plan
from mlxmtp.decoding.draft import MTPChain
from mlxmtp.decoding.estimates import AcceptanceRate
from mlxmtp.decoding.loop import generate, never_stop
from mlxmtp.decoding.round_costs import RoundCosts
from mlxmtp.decoding.sampler import Draft, Sampler, VerifyMode
from mlxmtp.decoding.sampling import Sampling
from mlxmtp.decoding.sequence import Sequence
from mlxmtp.decoding.stats import Round
from mlxmtp.targets import Target
from tests.grids import grid
from tests.scripted import Depths, TableTarget, assert_same_state, one_hot, random_table, snapshot

FEW = ((5, 50.0), (6, 50.0), (7, 50.0))
"""Of three tokens, a text soon repeats itself."""
LAWS = {
    "greedy": Sampling(logit_bias=FEW),
    "seeded": Sampling(1.0, seed=5, logit_bias=FEW),
    "penalised": Sampling(1.0, seed=5, logit_bias=FEW, frequency_penalty=0.01, presence_penalty=0.5),
}
WORDS = [40, 7, 99, 12, 150, 3]
COUNT = 48


class Forced(Depths):
    """Looks up `max_lookup` tokens whenever there is a match; else drafts the head's depths in turn."""

    def __init__(self, max_lookup: int, *depths: int) -> None:
        super().__init__(*depths * COUNT)
        self.max_lookup = max_lookup

    def _plan(self, match: int) -> Plan:
        own = super()._plan(match)
        return Plan(self.max_lookup, "lookup") if match and self.max_lookup else own


def drafted(target: Target, sequence: Sequence, policy: DepthPolicy, law: Sampler, count: int = COUNT) -> list[Round]:
    assert sequence.head
    return list(generate(target, MTPChain(sequence.head), sequence, law, policy, never_stop, count))


@pytest.mark.parametrize(
    ("kind", "law"),
    grid(
        ["qwen3_5", "qwen3_next"],
        LAWS,
        default=lambda kind, law: (kind, law) in (("qwen3_5", "penalised"), ("qwen3_next", "seeded")),
    ),
)
def test_tokens_and_caches_are_plain_decodings(raw_checkpoint: Callable[..., Path], kind: str, law: str) -> None:
    engine = load(raw_checkpoint(kind, dtype="float32"))
    prompt = WORDS * 4
    plain = Sequence(engine.target, None)
    plain.prefill(prompt)
    list(generate(engine.target, None, plain, Sampler(LAWS[law]), FixedDepth(0), never_stop, COUNT))
    seen = set()
    for repeated, depths in ((1, (2,)), (5, (0, 0, 0, 1)), (16, (3, 0))):
        sequence = Sequence(engine.target, engine.mtp)
        sequence.prefill(prompt)
        run = drafted(engine.target, sequence, Forced(repeated, *depths), Sampler(LAWS[law]))
        assert sequence.tokens == plain.tokens
        assert_same_state(snapshot(sequence.cache), snapshot(plain.cache))
        seen |= {(one.from_lookup, one.accepted > 0, one.accepted < one.drafted) for one in run}

        fresh = Sequence(engine.target, engine.mtp)
        fresh.prefill(sequence.tokens)
        drafts = [MTPChain(engine.mtp).propose(one, 4, Sampler(Sampling())).tokens for one in (sequence, fresh)]
        assert mx.array_equal(*drafts), "the head has not read what was looked up"
    assert {(True, True, False), (True, False, True)} <= seen, "drafts from the text that stood, and that did not"


@pytest.mark.parametrize("depth", [0, 2])
def test_whoever_leaves_behind_any_round_has_the_caches_of_its_tokens(
    raw_checkpoint: Callable[..., Path], depth: int
) -> None:
    """Also between drafts from the text and plain rounds, of which one is under way."""
    engine = load(raw_checkpoint("qwen3_5", dtype="float32"))
    kinds = set()
    for count in (1, 2, 3, 5, 8):
        sequence = Sequence(engine.target, engine.mtp)
        sequence.prefill(WORDS * 4)
        law, policy = Sampler(LAWS["seeded"]), Forced(3, depth)
        rounds = generate(engine.target, MTPChain(engine.mtp), sequence, law, policy, never_stop, COUNT)
        kinds.add([next(rounds) for _ in range(count)][-1].from_lookup)
        rounds.close()
        fresh = Sequence(engine.target, None)
        fresh.prefill(WORDS * 4)
        list(
            generate(
                engine.target,
                None,
                fresh,
                Sampler(LAWS["seeded"]),
                FixedDepth(0),
                never_stop,
                len(sequence.tokens) - 24,
            )
        )
        assert sequence.tokens == fresh.tokens
        assert_same_state(snapshot(sequence.cache), snapshot(fresh.cache))
    assert kinds == {True, False}


@pytest.mark.exact
def test_log_probabilities_are_those_of_plain_decoding(raw_checkpoint: Callable[..., Path]) -> None:
    engine = load(raw_checkpoint("qwen3_5", dtype="float32"))
    told = []
    for repeated in (0, 5):
        sequence = Sequence(engine.target, engine.mtp)
        sequence.prefill(WORDS * 4)
        law, policy = Sampler(LAWS["greedy"]), Forced(repeated, 0)
        run = list(generate(engine.target, MTPChain(engine.mtp), sequence, law, policy, never_stop, COUNT, 2))
        assert any(one.from_lookup for one in run) == (repeated > 0)
        told.append([one for told in run for one in told.logprobs])
    assert len(told[0]) == COUNT
    assert told[0] == told[1]


class Late(FixedDepth):
    """A plain round; then from the text where there is a match, else one draft of the head."""

    def __init__(self) -> None:
        super().__init__(1, max_lookup=9)
        self.asked: list[int] = []

    def plan(self, matches: Iterable[int] = (0,)) -> list[Plan]:
        [match] = matches
        self.asked.append(match)
        return [PLAIN if len(self.asked) == 1 else Plan(9, "lookup") if match else Plan(1)]


def test_a_match_that_became_shorter_is_not_drafted_from(raw_checkpoint: Callable[..., Path]) -> None:
    """The plain token ends the match of 30; the drafts after it are planned once more, with the match that is left."""
    engine = load(raw_checkpoint("qwen3_5", dtype="float32"))
    sequence = Sequence(engine.target, engine.mtp)
    sequence.prefill(WORDS * 6)
    policy = Late()
    rounds = generate(engine.target, MTPChain(engine.mtp), sequence, Sampler(LAWS["seeded"]), policy, never_stop, COUNT)
    plain, drafted = next(rounds), next(rounds)
    assert plain.tokens[0] not in WORDS, "the text went on as before: the test shows nothing"
    assert policy.asked == [30, 30, 0], "once in flight, with the match before the token; then without it"
    assert (drafted.from_lookup, drafted.drafted) == (False, 1), "one draft, and of the head"


@pytest.mark.parametrize("mode", ["token", "block"])
def test_a_draft_without_a_distribution_was_certain(mode: VerifyMode) -> None:
    """The verdict of one that could be nothing else, whose law test_verify_law.py enumerates."""
    target = TableTarget(random_table(6, seed=3))
    for seed in range(60):
        tokens = mx.random.randint(0, 6, (1, 3), key=mx.random.key(seed)).astype(mx.uint32)
        logits, _ = target.forward(mx.concatenate([mx.array([[2]], mx.uint32), tokens], axis=1), target.make_cache())
        laws = [one_hot(token, 6) for token in tokens[0].tolist()]
        verdicts = [
            Sampler(Sampling(1.0, seed=seed), mode).verify(logits, Draft(tokens, given), 9)[0] for given in ([], laws)
        ]
        assert verdicts[0].accepted.item() == verdicts[1].accepted.item()
        assert verdicts[0].token.item() == verdicts[1].token.item()


class Untimed(AutoDepth):
    """Rounds cost what is known of them, whatever the clock says."""

    def _time(self, round: Round) -> None:
        pass


class Wrong:
    """Drafts a token that never comes."""

    def propose(self, sequence: Sequence, depth: int, sampler: Sampler) -> Draft:
        return Draft(mx.full((1, depth), 9, mx.uint32), [])


def test_decoding_plainly_one_draft_is_tried_now_and_then(raw_checkpoint: Callable[..., Path]) -> None:
    """One round a look; twice as many plain tokens before the next; a round that is under way when it is planned."""
    engine = load(raw_checkpoint("qwen3_5"))
    sequence = Sequence(engine.target, None)
    sequence.prefill(WORDS)
    policy = Untimed(4, 0, RoundCosts({1: 1.5, 2: 2.0}), AcceptanceRate([0.05]))
    run = list(generate(engine.target, Wrong(), sequence, Sampler(LAWS["greedy"]), policy, never_stop, 200))
    plain = "".join("d" if one.drafted else "p" for one in run).split("d")
    assert {one.drafted for one in run} == {0, 1}
    assert [len(tokens) for tokens in plain][:-1] == [4, 7, 13, 25, 49, 49]


def test_repeats_that_do_not_go_on_alike_are_no_longer_looked_up(raw_checkpoint: Callable[..., Path]) -> None:
    """Of three tokens at random, most ends of the text stood there before, and say nothing of what comes."""
    engine = load(raw_checkpoint("qwen3_5"))
    sequence = Sequence(engine.target, engine.mtp)
    sequence.prefill([5, 6, 7] * 8)
    policy = Untimed(4, 8, RoundCosts({1: 2.0, 2: 3.0}, {1: 2.0, 2: 3.0, 8: 9.0}), AcceptanceRate([0.05]))
    few = ((5, 100.0), (6, 100.0), (7, 100.0))
    sampler, matches = Sampler(Sampling(5.0, seed=1, logit_bias=few)), []
    observe = policy.observe

    def watched(observations: Iterable[Observation]) -> None:
        matches.extend(one.match for one in observations)
        observe([*observations])

    policy.observe = watched  # type: ignore[method-assign]
    run = list(generate(engine.target, MTPChain(engine.mtp), sequence, sampler, policy, never_stop, 300))
    assert sum(match > 0 for match in matches) > 100, "there was something to look up"
    assert sum(one.from_lookup for one in run) <= 10
