"""A drafter of your own: it proposes, and verification keeps the text exact whatever it proposes.

.venv/bin/python examples/own_drafter.py
"""

from itertools import pairwise

import mlx.core as mx

from mlxmtp import GenerationOptions, load
from mlxmtp.decoding.depth import FixedDepth
from mlxmtp.decoding.loop import generate, never_stop
from mlxmtp.decoding.sampler import Draft, Sampler, no_draft
from mlxmtp.decoding.sequence import Sequence
from mlxmtp.engine.prompt import encode

TOKENS, DEPTH = 96, 4
PROMPT = "Write a function that adds two numbers."


class Bigrams:
    """Drafts the token that came after the last one the last time, and so on from there."""

    def propose(self, sequence: Sequence, depth: int, sampler: Sampler) -> Draft:
        after = dict(pairwise(sequence.tokens))
        drafts: list[int] = []
        token = sequence.tokens[-1]
        while len(drafts) < depth and token in after:
            token = after[token]
            drafts.append(token)
        # without distributions: each draft was the only token that could have come
        return Draft(mx.array([drafts], mx.uint32), []) if drafts else no_draft()


engine = load(mtp=False)
prompt = encode(engine.tokenizer, PROMPT, raw=False)


def drafted(options: GenerationOptions) -> tuple[list[int], int]:
    """The tokens with drafts, and in how many passes."""
    sequence = Sequence(engine.target, None)
    sequence.prefill(prompt)
    sampler, policy = Sampler(options.sampling), FixedDepth(DEPTH)
    rounds = list(generate(engine.target, Bigrams(), sequence, sampler, policy, never_stop, TOKENS))
    return [token for one in rounds for token in one.tokens], len(rounds)


greedy, seeded = GenerationOptions(max_tokens=TOKENS), GenerationOptions(max_tokens=TOKENS, temperature=0.8, seed=3)
for options in (greedy, seeded):
    tokens, passes = drafted(options)
    plain = engine.generate(prompt, options)
    assert tokens[: len(plain.tokens)] == plain.tokens, "the text of plain decoding, token for token"
    print(f"temperature {options.temperature}: {len(tokens)} tokens in {passes} passes")
    print(plain.text)
