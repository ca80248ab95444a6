"""Drafts that are looked up in the text: the tokens stay those of plain decoding, whatever they are and however many.

Equal means bit for bit, as in test_loop.py.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest

from mlxmtp import Sampling, load
from mlxmtp.decoding.auto import AutoDepth
from mlxmtp.decoding.drafters import MTPChain
from mlxmtp.decoding.drafting import AutoDrafter
from mlxmtp.decoding.loop import decode_plainly, keep_all, speculate
from mlxmtp.decoding.sequence import Sequence
from mlxmtp.decoding.stats import Round
from mlxmtp.decoding.verifier import Draft, Verifier, VerifyMode
from tests.scripted import TableTarget, assert_same_state, one_hot, random_table, snapshot

FEW = ((5, 50.0), (6, 50.0), (7, 50.0))
"""Of three tokens, a text soon repeats itself."""
LAWS = {"greedy": Sampling(logit_bias=FEW), "seeded": Sampling(1.0, seed=5, logit_bias=FEW)}
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
    return list(speculate(target, auto, sequence, law, auto, keep_all, count))  # type: ignore[arg-type]


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("kind", ["qwen3_5", "qwen3_next"])
def test_tokens_and_caches_are_plain_decodings(raw_checkpoint: Callable[..., Path], kind: str, law: str) -> None:
    engine = load(raw_checkpoint(kind, dtype="float32"))
    prompt = WORDS * 4
    plain = Sequence(engine.target, None)
    plain.prefill(prompt)
    list(decode_plainly(engine.target, plain, Verifier(LAWS[law]), keep_all, COUNT))
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


def test_nothing_is_looked_up_where_it_does_not_pay(raw_checkpoint: Callable[..., Path]) -> None:
    """Of random weights' random text nothing repeats itself; the matches in the prompt are never followed."""
    engine = load(raw_checkpoint("qwen3_5"))
    sequence = Sequence(engine.target, engine.mtp)
    sequence.prefill(WORDS * 4)
    policy = AutoDepth(4, 8)
    run = drafted(engine.target, sequence, policy, Verifier(Sampling(5.0, seed=1)), 200)
    assert sum(one.looked_up for one in run) <= 2
