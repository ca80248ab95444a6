"""One turn through the round loop: tokens in, chunks of text out."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Several
from contextlib import ExitStack, closing, redirect_stdout
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx_lm.generate import wired_limit

from mlxmtp.decoding.depth import DepthPolicy
from mlxmtp.decoding.draft import MTPChain
from mlxmtp.decoding.loop import generate
from mlxmtp.decoding.sampler import Sampler
from mlxmtp.decoding.sequence import Sequence
from mlxmtp.decoding.stats import Round, Stats, StatsAccumulator, TokenLogprob
from mlxmtp.engine.parts import OutputParser, Segment
from mlxmtp.engine.prefix_cache import PrefixCache
from mlxmtp.engine.text import StreamingDetokenizer
from mlxmtp.heads import Head
from mlxmtp.targets import Target


@dataclass(frozen=True)
class Chunk:
    """What one round added to a turn: its certain text, its token ids, the turn's statistics so far.

    `finish_reason` is None until the last chunk: "stop" (end token or stop string) or "length".
    `parts` is the text again, taken apart by what it is, without the boundaries of thinking and calls.
    `logprobs` has one record for each of `tokens` where they were asked for, else none.
    `stopped_by` is the stop string that ended the turn, if one did.
    """

    text: str
    tokens: tuple[int, ...]
    stats: Stats
    finish_reason: str | None
    parts: tuple[Segment, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    stopped_by: str | None = None


@dataclass(frozen=True)
class Turn:
    """What a turn is made of; `run` generates it.

    Args:
        head, policy: of the drafts; without a head decoding is plain. logprobs: as `Engine.stream`.
    """

    target: Target
    head: Head | None
    text: StreamingDetokenizer
    splitter: OutputParser
    sampler: Sampler
    policy: DepthPolicy
    prefixes: PrefixCache
    logprobs: int | None

    def run(
        self,
        prompt: list[int],
        boundaries: Several[int],
        max_tokens: int,
        prefill_rows: int,
        on_prefill: Callable[[int, int], None] | None,
        started: float,
    ) -> Iterator[Chunk]:
        """The turn's chunks; `started` is the clock at its request. Closed early, the caches are kept all the same."""
        mx.reset_peak_memory()
        with ExitStack() as stack:
            with redirect_stdout(sys.stderr):  # mlx-lm prints its warning about large models
                stack.enter_context(wired_limit(self.target.model))
            sequence = self.prefixes.take(prompt, self.target, self.head)
            reused = len(sequence.tokens)
            tally = StatsAccumulator(len(prompt), started, reused)
            sequence.prefill(prompt[reused:], prefill_rows, self._watched(sequence, on_prefill), boundaries)
            tally.prefilled(time.perf_counter())
            with closing(self._rounds(sequence, max_tokens)) as rounds:
                for one in rounds:
                    tally.add(one, time.perf_counter())
                    chunk = self._chunk(one, tally)
                    try:
                        yield chunk
                    except GeneratorExit:  # whoever reads has enough: the caches stand at the last token
                        rounds.close()
                        self.prefixes.keep(sequence)
                        raise
            self.prefixes.keep(sequence)

    def _watched(self, sequence: Sequence, on_prefill: Callable[[int, int], None] | None) -> Callable[[int, int], None]:
        """What is done after each chunk of the prompt; where a caller ends the turn there, what was read is kept."""

        def watch(done: int, total: int) -> None:
            self.prefixes.fit()
            try:
                if on_prefill:
                    on_prefill(done, total)
            except BaseException:
                self.prefixes.keep(sequence)
                raise

        return watch

    def _chunk(self, one: Round, tally: StatsAccumulator) -> Chunk:
        if one.finish == "length":
            self.text.finish()
        text = self.text.take()
        parts = self.splitter.feed(text) + (self.splitter.finish() if one.finish else ())
        stats = tally.stats(mx.get_peak_memory(), self.policy.why if self.head else "")
        return Chunk(text, one.tokens, stats, one.finish, parts, one.logprobs, self.text.stopped_by)

    def _rounds(self, sequence: Sequence, max_tokens: int) -> Any:
        drafter = MTPChain(self.head) if self.head else None
        turn = sequence, self.sampler, self.policy
        return generate(self.target, drafter, *turn, self.text.feed, max_tokens, self.logprobs)
