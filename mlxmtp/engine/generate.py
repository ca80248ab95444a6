"""One turn through the decoding loop: tokens in, chunks of text out."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx

from mlxmtp.decoding.depth import DepthPolicy
from mlxmtp.decoding.draft import MTPChain, narrowed_chain
from mlxmtp.decoding.loop import generate
from mlxmtp.decoding.sampler import Sampler
from mlxmtp.decoding.sequence import Sequence
from mlxmtp.decoding.stats import Round, Stats, StatsAccumulator, TokenLogprob
from mlxmtp.engine.output import OutputParser, Segment, StreamingDetokenizer
from mlxmtp.engine.prefix_cache import PrefixCache
from mlxmtp.heads import Head, NarrowedLogits
from mlxmtp.targets import Target


@dataclass(frozen=True)
class Chunk:
    """What one round adds to a turn.

    Args:
        text: the text that has become certain.
        tokens: the round's token ids.
        stats: statistics of the turn so far.
        finish_reason: None until the last chunk, then "stop" (end token or stop string) or "length".
        segments: the same text, split into text, thinking and tool calls, without their markers.
        logprobs: one record for each token, where `GenerationOptions.logprobs` asks for them.
        stopped_by: the stop string that ended the turn, if any.
    """

    text: str
    tokens: tuple[int, ...]
    stats: Stats
    finish_reason: str | None
    segments: tuple[Segment, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    stopped_by: str | None = None


@dataclass(frozen=True)
class Result:
    """A whole turn.

    Args:
        tokens: the generated ids, an end token included; the text ends before it.
        finish_reason: "stop" or "length".
    """

    text: str
    tokens: list[int]
    prompt_tokens: int
    finish_reason: str
    stats: Stats


@dataclass(frozen=True)
class TurnGenerator:
    """Generates one turn; each has a detokenizer, a parser and a sampler of its own.

    Args:
        head: of the model; None: it has none.
        drafting: the turn uses the head.
        policy: chooses the drafts of each round.
        prefix_cache: gives the caches of the longest known prefix, and takes those of this turn.
        logprobs: as in `GenerationOptions`.
        narrowed: the head's logits over a narrowed draft vocabulary; None: `policy` plans no such drafts.
    """

    target: Target
    head: Head | None
    drafting: bool
    detokenizer: StreamingDetokenizer
    parser: OutputParser
    sampler: Sampler
    policy: DepthPolicy
    prefix_cache: PrefixCache
    logprobs: int | None
    narrowed: NarrowedLogits | None

    def run(
        self,
        prompt: list[int],
        max_tokens: int,
        *,
        boundaries: Collection[int],
        prefill_tokens: int,
        on_prefill: Callable[[int, int], None] | None,
        started: float,
    ) -> Iterator[Chunk]:
        """Yield the turn's chunks. Closed early, the caches still go to the prefix cache.

        Args:
            boundaries, prefill_tokens, on_prefill: as in `Engine.stream`.
            started: `time.perf_counter()` at the request.
        """
        mx.reset_peak_memory()
        sequence = self.prefix_cache.fetch(prompt, self.target, self.head, drafting=self.drafting)
        reused = len(sequence.tokens)
        totals = StatsAccumulator(len(prompt), started, reused)
        sequence.prefill(prompt[reused:], prefill_tokens, self._prefill_watcher(sequence, on_prefill), boundaries)
        totals.prefilled(time.perf_counter())
        with closing(self._rounds(sequence, max_tokens)) as rounds:
            for item in rounds:
                totals.add(item, time.perf_counter())
                chunk = self._chunk(item, totals)
                try:
                    yield chunk
                except GeneratorExit:  # the reader has enough: the caches hold all tokens so far
                    rounds.close()
                    self.prefix_cache.insert(sequence)
                    raise
        self.prefix_cache.insert(sequence)

    def _prefill_watcher(
        self, sequence: Sequence, on_prefill: Callable[[int, int], None] | None
    ) -> Callable[[int, int], None]:
        """What to call after each chunk of the prompt. If the caller ends the turn there, the caches are kept."""

        def watch(done: int, total: int) -> None:
            self.prefix_cache.evict()
            try:
                if on_prefill:
                    on_prefill(done, total)
            except BaseException:
                self.prefix_cache.insert(sequence)
                raise

        return watch

    def _chunk(self, item: Round, totals: StatsAccumulator) -> Chunk:
        if item.finish == "length":
            self.detokenizer.finish()
            if self.detokenizer.stopped_by:  # by the text that was held back
                item = replace(item, finish="stop")
        text = self.detokenizer.take()
        return Chunk(
            text=text,
            tokens=item.tokens,
            stats=totals.stats(mx.get_peak_memory(), self.policy.why if self.drafting else ""),
            finish_reason=item.finish,
            segments=self.parser.feed(text) + (self.parser.finish() if item.finish else ()),
            logprobs=item.logprobs,
            stopped_by=self.detokenizer.stopped_by,
        )

    def _rounds(self, sequence: Sequence, max_tokens: int) -> Any:
        return generate(
            self.target,
            MTPChain(self.head) if self.head and self.drafting else None,
            sequence,
            self.sampler,
            self.policy,
            self.detokenizer.feed,
            max_tokens,
            self.logprobs,
            narrowed_chain(self.head, self.narrowed),
        )
