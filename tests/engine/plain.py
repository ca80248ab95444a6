"""What mlx-lm itself makes of a prompt, without drafts or reuse: tokens, logits and caches."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from typing import Any

import mlx.core as mx
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import make_prompt_cache

from mlxmtp import Engine, GenerationOptions
from mlxmtp.decoding.sampler import Sampler, no_draft
from mlxmtp.decoding.sampling import Sampling
from mlxmtp.decoding.sequence import PREFILL_TOKENS
from mlxmtp.decoding.stats import TokenLogprob
from tests.scripted import snapshot

MOST = 16
"""Tokens of the longest turn."""
Choice = Callable[[mx.array, int], int]
"""The next token, of the logits [1, V] and the number of tokens generated so far."""


@dataclass(frozen=True)
class PlainTurn:
    """A turn as it has to be.

    Args:
        logits: [V] of each token, before processors, in float32.
    """

    tokens: list[int]
    text: str
    finish: str
    logits: list[mx.array]

    def logprobs(self, top: int) -> list[TokenLogprob]:
        return [_record(logits, token, top) for logits, token in zip(self.logits, self.tokens, strict=True)]


class Plain:
    """mlx-lm's model of an engine, called by mlx-lm."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._model = engine.target.model
        self.state = cache(self._state)
        self._after_chunk = cache(self._read_chunk)
        self._turns: dict[object, tuple[list[int], list[mx.array]]] = {}

    def turn(self, prompt: list[int], options: GenerationOptions) -> PlainTurn:
        """A greedy or seeded turn."""
        key = tuple(prompt), repr(options.sampling)
        if key not in self._turns:
            sampled = options.sampling != Sampling()
            self._turns[key] = self._steps(prompt, MOST, self._sample(prompt, options) if sampled else None)
        return self._cut(*self._turns[key], options)

    def forced(self, prompt: list[int], options: GenerationOptions, tokens: list[int]) -> PlainTurn:
        """A turn of these tokens, whatever the logits are."""
        return self._cut(*self._steps(prompt, len(tokens), lambda _, number: tokens[number]), options)

    def _state(self, tokens: tuple[int, ...], steps: int = 0) -> list[mx.array]:
        """Everything in the caches after these tokens that a later pass can see.

        Args:
            steps: how many of the tokens, the last, are read one by one, as those of an answer are.
        """
        caches, read = self._first_chunk(tokens[: len(tokens) - steps])
        prompt = tokens[read : len(tokens) - steps]
        chunks = [prompt[i : i + PREFILL_TOKENS] for i in range(0, len(prompt), PREFILL_TOKENS)]
        for chunk in [*chunks, *([token] for token in tokens[len(tokens) - steps :])]:
            self._model(mx.array([chunk]), cache=caches)
            mx.eval([layer.state for layer in caches])
        return snapshot(caches)

    def _first_chunk(self, prompt: tuple[int, ...]) -> tuple[list[Any], int]:
        """Caches that have read the first full chunk of a longer prompt, once for all that begin so; tokens read."""
        if len(prompt) <= PREFILL_TOKENS:
            return make_prompt_cache(self._model), 0
        return deepcopy(self._after_chunk(prompt[:PREFILL_TOKENS])), PREFILL_TOKENS

    def _read_chunk(self, chunk: tuple[int, ...]) -> list[Any]:
        caches = make_prompt_cache(self._model)
        self._model(mx.array([chunk]), cache=caches)
        mx.eval([layer.state for layer in caches])
        return caches

    def _sample(self, prompt: list[int], options: GenerationOptions) -> Choice:
        sampler = Sampler(options.sampling)
        sampler.begin(prompt)

        def choose(logits: mx.array, number: int) -> int:
            acceptance, _ = sampler.verify(logits[None], no_draft(), len(prompt) + number)
            token = int(acceptance.token.item())
            sampler.advance([token])
            return token

        return choose

    def _steps(self, prompt: list[int], limit: int, choose: Choice | None) -> tuple[list[int], list[mx.array]]:
        """Tokens up to an end token, and their logits; mlx-lm's own choice where none is given."""
        seen: list[mx.array] = []
        choices: list[int] = []

        def sampler(_: mx.array) -> mx.array:
            assert choose
            choices.append(choose(seen[-1], len(choices)) if len(choices) < limit else 0)
            return mx.array([choices[-1]])

        def watch(_: mx.array, logits: mx.array) -> mx.array:
            seen.append(logits)
            return logits

        caches, read = self._first_chunk(tuple(prompt))
        steps = generate_step(
            mx.array(prompt[read:]),
            self._model,
            max_tokens=limit,
            prompt_cache=caches,
            sampler=sampler if choose else None,
            logits_processors=[watch],
        )
        tokens: list[int] = []
        for token, _ in steps:
            tokens.append(int(token))
            if tokens[-1] in self._engine.tokenizer.eos_token_ids:
                break
        return tokens, [logits[0].astype(mx.float32) for logits in seen[: len(tokens)]]

    def _cut(self, tokens: list[int], logits: list[mx.array], options: GenerationOptions) -> PlainTurn:
        """The turn that the first of these tokens are, as mlx-lm's detokenizer writes it."""
        written, ends = self._engine.tokenizer.detokenizer, self._engine.tokenizer.eos_token_ids
        written.reset()
        most = min(options.max_tokens or MOST, len(tokens))
        for count, token in enumerate(tokens[:most], start=1):
            if token not in ends:
                written.add_token(token)
            if token in ends or count == most:
                written.finalize()
            found = [written.text.index(mark) for mark in options.stop if mark in written.text]
            if token in ends or found:
                text = written.text[: min(found, default=None)]
                return PlainTurn(tokens[:count], text, "stop", logits[:count])
        return PlainTurn(tokens[:most], written.text, "length", logits[:most])


def _record(logits: mx.array, token: int, top: int) -> TokenLogprob:
    law: list[float] = (logits - mx.logsumexp(logits)).tolist()  # type: ignore[assignment]
    best = sorted(range(len(law)), key=lambda one: (-law[one], one))[:top]
    return TokenLogprob(token, law[token], tuple((one, law[one]) for one in best))
