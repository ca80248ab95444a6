"""Drafts that are looked up in the text: the tokens stay those of plain decoding, whatever they are and however many.

Equal means bit for bit, as in test_loop.py.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest

from mlxmtp import load
from mlxmtp.decoding.acceptance import Acceptance
from mlxmtp.decoding.auto import AutoDepth
from mlxmtp.decoding.costs import Costs
from mlxmtp.decoding.drafters import MTPChain
from mlxmtp.decoding.drafting import AutoDrafter
from mlxmtp.decoding.loop import decode_plainly, never_stop, speculate
from mlxmtp.decoding.sampling import Sampling
from mlxmtp.decoding.sequence import Sequence
from mlxmtp.decoding.stats import Round
from mlxmtp.decoding.verifier import Draft, Verifier, VerifyMode
from tests.scripted import TableTarget, assert_same_state, one_hot, random_table, snapshot

FEW = ((5, 50.0), (6, 50.0), (7, 50.0))
"""Of three tokens, a text soon repeats itself."""
LAWS = {
    "greedy": Sampling(logit_bias=FEW),
    "seeded": Sampling(1.0, seed=5, logit_bias=FEW),
    "penalised": Sampling(1.0, seed=5, logit_bias=FEW, frequency_penalty=0.01, presence_penalty=0.5),
}
WORDS = [40, 7, 99, 12, 150, 3]
COUNT = 60


class Forced(AutoDepth):
    """Looks up whenever there is a match; else the head's depths in turn, or plain steps."""

    def __init__(self, repeated: int, *depths: int) -> None:
        super().__init__(max(depths), repeated)
        self._depths = depths
        self._asked = 0

    def repeat(self, match: int) -> int:
        return self.most_repeated if match else 0

    def next(self) -> int:
        self._asked += 1
        return self._depths[self._asked % len(self._depths)]


def drafted(target: object, sequence: Sequence, policy: AutoDepth, law: Verifier, count: int = COUNT) -> list[Round]:
    assert sequence.head
    auto = AutoDrafter(MTPChain(sequence.head), policy, sequence)
    return list(speculate(target, auto, sequence, law, auto, never_stop, count))  # type: ignore[arg-type]


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("kind", ["qwen3_5", "qwen3_next"])
def test_tokens_and_caches_are_plain_decodings(raw_checkpoint: Callable[..., Path], kind: str, law: str) -> None:
    engine = load(raw_checkpoint(kind, dtype="float32"))
    prompt = WORDS * 4
    plain = Sequence(engine.target, None)
    plain.prefill(prompt)
    list(decode_plainly(engine.target, plain, Verifier(LAWS[law]), never_stop, COUNT))
    seen = set()
    for repeated, depths in ((1, (2,)), (3, (0,)), (5, (0, 0, 0, 1)), (16, (3, 0))):
        sequence = Sequence(engine.target, engine.mtp)
        sequence.prefill(prompt)
        run = drafted(engine.target, sequence, Forced(repeated, *depths), Verifier(LAWS[law]))
        assert sequence.tokens == plain.tokens
        assert_same_state(snapshot(sequence.cache), snapshot(plain.cache))
        seen |= {(one.looked_up, one.accepted > 0, one.accepted < one.drafted) for one in run}

        fresh = Sequence(engine.target, engine.mtp)
        fresh.prefill(sequence.tokens)
        drafts = [MTPChain(engine.mtp).propose(one, 4, Verifier(Sampling())).tokens for one in (sequence, fresh)]
        assert mx.array_equal(*drafts), "the head has not read what was looked up"
    assert {(True, True, False), (True, False, True)} <= seen, "drafts from the text that stood, and that did not"


@pytest.mark.parametrize("depth", [0, 2])
def test_whoever_leaves_behind_any_round_has_the_caches_of_its_tokens(
    raw_checkpoint: Callable[..., Path], depth: int
) -> None:
    """Also between drafts from the text and plain rounds, of which one is under way."""
    engine = load(raw_checkpoint("qwen3_5", dtype="float32"))
    kinds = set()
    for count in range(1, 12):
        sequence = Sequence(engine.target, engine.mtp)
        sequence.prefill(WORDS * 4)
        auto = AutoDrafter(MTPChain(engine.mtp), Forced(3, depth), sequence)
        law = Verifier(LAWS["seeded"])
        rounds = speculate(engine.target, auto, sequence, law, auto, never_stop, COUNT)
        kinds.add([next(rounds) for _ in range(count)][-1].looked_up)
        rounds.close()
        fresh = Sequence(engine.target, None)
        fresh.prefill(WORDS * 4)
        list(decode_plainly(engine.target, fresh, Verifier(LAWS["seeded"]), never_stop, len(sequence.tokens) - 24))
        assert sequence.tokens == fresh.tokens
        assert_same_state(snapshot(sequence.cache), snapshot(fresh.cache))
    assert kinds == {True, False}


def test_log_probabilities_are_those_of_plain_decoding(raw_checkpoint: Callable[..., Path]) -> None:
    engine = load(raw_checkpoint("qwen3_5", dtype="float32"))
    told = []
    for repeated in (0, 5):
        sequence = Sequence(engine.target, engine.mtp)
        sequence.prefill(WORDS * 4)
        auto = AutoDrafter(MTPChain(engine.mtp), Forced(repeated, 0), sequence)
        law = Verifier(LAWS["greedy"])
        run = list(speculate(engine.target, auto, sequence, law, auto, never_stop, COUNT, 2))
        assert any(one.looked_up for one in run) == (repeated > 0)
        told.append([one for told in run for one in told.logprobs])
    assert len(told[0]) == COUNT
    assert told[0] == told[1]


class Late(Forced):
    """Plain at first; then looks up whenever there is a match."""

    def __init__(self, repeated: int) -> None:
        super().__init__(repeated, 0)
        self._first = True

    def repeat(self, match: int) -> int:
        first, self._first = self._first, False
        return 0 if first else super().repeat(match)


def test_a_match_that_became_shorter_is_not_drafted_from(raw_checkpoint: Callable[..., Path]) -> None:
    """The depth behind the first plain token is chosen before that token is known, and it ends the match of 30."""
    engine = load(raw_checkpoint("qwen3_5", dtype="float32"))
    sequence = Sequence(engine.target, engine.mtp)
    sequence.prefill(WORDS * 6)
    drafts: list[Draft] = []

    class Watched(AutoDrafter):
        def propose(self, sequence: Sequence, depth: int, verifier: Verifier) -> Draft:
            drafts.append(super().propose(sequence, depth, verifier))
            return drafts[-1]

    auto = Watched(MTPChain(engine.mtp), Late(9), sequence)
    rounds = speculate(engine.target, auto, sequence, Verifier(LAWS["seeded"]), auto, never_stop, COUNT)
    plain, drafted = next(rounds), next(rounds)
    assert plain.tokens[0] not in WORDS, "the text went on as before: the test shows nothing"
    assert (drafts[0].looked_up, drafts[0].depth) == (False, 1), "one draft, and of the head"
    assert (drafted.looked_up, drafted.drafted) == (False, 1)


@pytest.mark.parametrize("mode", ["token", "block"])
def test_a_draft_without_a_distribution_was_certain(mode: VerifyMode) -> None:
    """The verdict of one that could be nothing else, whose law test_verify_law.py enumerates."""
    target = TableTarget(random_table(6, seed=3))
    for seed in range(60):
        tokens = mx.random.randint(0, 6, (1, 3), key=mx.random.key(seed)).astype(mx.uint32)
        logits, _ = target.forward(mx.concatenate([mx.array([[2]], mx.uint32), tokens], axis=1), target.make_cache())
        laws = [one_hot(token, 6) for token in tokens[0].tolist()]
        verdicts = [
            Verifier(Sampling(1.0, seed=seed), mode).verify(logits, Draft(tokens, given), 9)[0] for given in ([], laws)
        ]
        assert verdicts[0].accepted.item() == verdicts[1].accepted.item()
        assert verdicts[0].token.item() == verdicts[1].token.item()


class Untimed(AutoDepth):
    """Rounds cost what is known of them, whatever the clock says."""

    def _time(self, one: Round) -> None:
        pass


class Wrong:
    """Drafts a token that never comes."""

    def propose(self, sequence: Sequence, depth: int, verifier: Verifier) -> Draft:
        return Draft(mx.full((1, depth), 9, mx.uint32), [])


def test_decoding_plainly_one_draft_is_tried_now_and_then(raw_checkpoint: Callable[..., Path]) -> None:
    """One round a look; twice as many plain tokens before the next; a round that is under way when it is planned."""
    engine = load(raw_checkpoint("qwen3_5"))
    sequence = Sequence(engine.target, None)
    sequence.prefill(WORDS)
    policy = Untimed(4, 0, Costs({0: 1.0, 1: 1.5, 2: 2.0}), Acceptance([0.05]))
    auto = AutoDrafter(Wrong(), policy, sequence)
    run = list(speculate(engine.target, auto, sequence, Verifier(LAWS["greedy"]), auto, never_stop, 200))
    plain = "".join("d" if one.drafted else "p" for one in run).split("d")
    assert {one.drafted for one in run} == {0, 1}
    assert [len(tokens) for tokens in plain][:-1] == [4, 7, 13, 25, 49, 49]


def test_repeats_that_do_not_go_on_alike_are_no_longer_looked_up(raw_checkpoint: Callable[..., Path]) -> None:
    """Of three tokens at random, most ends of the text stood there before, and say nothing of what comes."""
    engine = load(raw_checkpoint("qwen3_5"))
    sequence = Sequence(engine.target, engine.mtp)
    sequence.prefill([5, 6, 7] * 8)
    policy = Untimed(4, 8, Costs({0: 1.0, 1: 2.0, 2: 3.0}, {1: 2.0, 2: 3.0, 8: 9.0}), Acceptance([0.05]))
    few = ((5, 100.0), (6, 100.0), (7, 100.0))
    matches = []

    class Watched(AutoDrafter):
        def observe(self, one: Round) -> None:
            matches.append(self._text.match)
            super().observe(one)

    auto = Watched(MTPChain(engine.mtp), policy, sequence)
    verifier = Verifier(Sampling(5.0, seed=1, logit_bias=few))
    run = list(speculate(engine.target, auto, sequence, verifier, auto, never_stop, 300))
    assert sum(match > 0 for match in matches) > 100, "there was something to look up"
    assert sum(one.looked_up for one in run) <= 10
