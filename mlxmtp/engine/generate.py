"""One turn through the decoding loop: tokens in, chunks of text out."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import TypedDict

import mlx.core as mx

from mlxmtp.decoding import sequence as sequences
from mlxmtp.decoding.depth import DepthPolicy
from mlxmtp.decoding.draft import MTPChain, narrowed_chain
from mlxmtp.decoding.loop import RoundLoop
from mlxmtp.decoding.sampler import Sampler
from mlxmtp.decoding.stats import Round, Stats, StatsAccumulator, TokenLogprob
from mlxmtp.decoding.turn import Turn
from mlxmtp.engine.head_fit import HeadFit
from mlxmtp.engine.output import OutputParser, Segment, StreamingDetokenizer, join_segments
from mlxmtp.engine.prefix_cache import PrefixCache
from mlxmtp.engine.trace import NO_TRACE, RoundTrace, trace_of
from mlxmtp.heads import Head, NarrowedLogits
from mlxmtp.targets import Target, expected_bytes, leaf_caches


class TurnArguments(TypedDict, total=False):
    """Arguments of `Engine.open_turn`, which tells them."""

    raw: bool
    prefill_tokens: int
    prefix_cache: PrefixCache | None
    boundaries: Sequence[int]
    opening: str
    conversation: bool


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
        trace: what was drafted, and which text came from it.
    """

    text: str
    tokens: tuple[int, ...]
    stats: Stats
    finish_reason: str | None
    segments: tuple[Segment, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    stopped_by: str | None = None
    trace: RoundTrace = NO_TRACE


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


def result_of(chunks: Sequence[Chunk]) -> Result:
    """Return the whole turn that these are all chunks of."""
    tokens = [token for chunk in chunks for token in chunk.tokens]
    last = chunks[-1]
    text = "".join(chunk.text for chunk in chunks)
    return Result(text, tokens, last.stats.prompt_tokens, last.finish_reason or "", last.stats)


class TextTurn:
    """One turn in progress: it reads its prompt in chunks, then takes rounds and gives chunks of text.

    Whoever drives it calls `read_chunk` while `reading`, gives `turn` to a `RoundLoop`, hands each round to `take`, and
    calls `close` at the end, or earlier to stop. The caches then go to the prefix cache.

    Args:
        head: of the model; None: it has none.
        drafting: the turn uses the head.
        policy: chooses the drafts of each round.
        prefix_cache: gives the caches of the longest known prefix, and takes those of this turn.
        logprobs: as in `GenerationOptions`.
        narrowed: the head's logits over a narrowed draft vocabulary; None: `policy` plans no such drafts.
        prompt: token ids. max_tokens: most tokens of the turn.
        boundaries, prefill_tokens: as in `Engine.stream`.
        started: `time.perf_counter()` at the request.
        fit: told of each round, and of the tokens at the end.
        on_reuse: called with the number of tokens that the prefix cache had, before the rest is read.
        on_close: called at the end.

    Attributes:
        prompt, boundaries, prefill_tokens: as given.
        reading: a part of the prompt is left to read.
        sequence: its tokens and caches; None before the first chunk, and after the end.
        finish: why it has ended; None: it goes on.
    """

    def __init__(
        self,
        target: Target,
        head: Head | None,
        *,
        drafting: bool,
        detokenizer: StreamingDetokenizer,
        parser: OutputParser,
        sampler: Sampler,
        policy: DepthPolicy,
        prefix_cache: PrefixCache,
        logprobs: int | None,
        narrowed: NarrowedLogits | None,
        prompt: list[int],
        max_tokens: int,
        boundaries: Collection[int],
        prefill_tokens: int,
        started: float,
        fit: HeadFit,
        on_reuse: Callable[[int], None] = lambda _: None,
        on_close: Callable[[], None] = lambda: None,
    ) -> None:
        self._target, self._head, self._drafting = target, head, drafting and head is not None
        self._narrowed = narrowed
        self._detokenizer, self._parser = detokenizer, parser
        self._sampler, self._policy = sampler, policy
        self._prefix_cache = prefix_cache
        self._logprobs = logprobs
        self.prompt, self.boundaries, self.prefill_tokens = prompt, boundaries, prefill_tokens
        self._max_tokens, self._started = max_tokens, started
        self._fit, self._on_reuse, self._on_close = fit, on_reuse, on_close
        self._chunks = self._read()
        self._totals: StatsAccumulator
        self._turn: Turn | None = None
        self._failed = False
        self.reading = True
        self.sequence: sequences.Sequence | None = None
        self.finish: str | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of its caches."""
        return self.sequence.nbytes if self.sequence else 0

    @property
    def tokens_held(self) -> int:
        """Tokens in its caches."""
        return self.sequence.offset if self.sequence else 0

    def expected_bytes(self, like: TextTurn, most_tokens: int) -> int:
        """Return the bytes that its caches are expected to need, by what those of another turn cost.

        Args:
            most_tokens: of the answer.
        """
        assert like.sequence is not None
        caches = leaf_caches(like.sequence.cache + like.sequence.head_cache)
        return max(self.nbytes, expected_bytes(caches, len(self.prompt) + min(self._max_tokens, most_tokens)))

    @property
    def turn(self) -> Turn:
        """What takes part in rounds, once the prompt has been read."""
        assert self._turn is not None
        return self._turn

    def read_chunk(self) -> tuple[int, int] | None:
        """Read the next chunk of the prompt; return (done, total) tokens, or None where nothing was left."""
        with self.failing():
            progress = next(self._chunks, None)
            if progress is None or progress[0] == progress[1]:
                next(self._chunks, None)  # appends the last token
                self._begin()
                self.reading = False
        return progress

    def restart(self) -> None:
        """Give up the caches, which an accident has spoiled; all tokens so far are read again, as a prompt."""
        if self.sequence:
            self._prefix_cache.drop(self.sequence)
            self.prompt = self.sequence.tokens if self._turn else self.prompt
        if self._turn:
            self._turn.queued = None
        self._chunks, self.sequence, self.reading = self._read(), None, True

    def take(self, outcome: Round | Exception) -> Chunk:
        """Return what a round adds; raises the error that ended the turn in it."""
        with self.failing():
            if isinstance(outcome, Exception):
                raise outcome
            self._totals.add(outcome, time.perf_counter())
            self._fit.observe(outcome)
            chunk = self._chunk(outcome)
        self.finish = chunk.finish_reason
        return chunk

    def close(self) -> None:
        """End the turn, also before its end; its caches go to the prefix cache, unless they cannot be used again."""
        self._chunks.close()
        if self._turn:
            self._turn.close()
        if self.sequence and not self._failed:
            self._fit.end_turn(self.sequence.tokens)
            self._prefix_cache.insert(self.sequence)
        elif self.sequence:
            self._prefix_cache.drop(self.sequence)
        self.sequence = None
        self._on_close()

    def fail(self) -> None:
        """Its caches cannot be used again: end without keeping them."""
        self._failed = True
        self.close()

    def _read(self) -> Generator[tuple[int, int]]:
        prompt = self.prompt
        self.sequence = self._prefix_cache.fetch(prompt, self._target, self._head, drafting=self._drafting)
        reused = len(self.sequence.tokens)
        self._on_reuse(reused)
        if not self._turn:
            self._totals = StatsAccumulator(len(prompt), self._started, reused)
        for progress in self.sequence.prefill_chunks(prompt[reused:], self.prefill_tokens, self.boundaries):
            self._prefix_cache.evict()
            yield progress

    def _begin(self) -> None:
        assert self.sequence is not None
        if self._turn:
            self._turn.sequence = self.sequence
            return
        self._totals.prefilled(time.perf_counter())
        self._turn = Turn(
            self.sequence,
            MTPChain(self._head) if self._head and self._drafting else None,
            self._sampler,
            self._policy,
            self._detokenizer.feed,
            self._max_tokens,
            self._logprobs,
            narrowed_chain(self._head, self._narrowed),
        )

    @contextmanager
    def failing(self) -> Iterator[None]:
        """What goes wrong in here leaves caches that cannot be used again; that the reader has enough is no fault."""
        try:
            yield
        except GeneratorExit:
            raise
        except BaseException:
            self._failed = True
            raise

    def _chunk(self, item: Round) -> Chunk:
        if item.finish == "length":
            self._detokenizer.finish()
            if self._detokenizer.stopped_by:  # by the text that was held back
                item = replace(item, finish="stop")
        pieces = self._detokenizer.take()
        parts = [self._parser.feed(piece) for piece in pieces]
        parts[-1] += self._parser.finish() if item.finish else ()
        return Chunk(
            text="".join(pieces),
            tokens=item.tokens,
            stats=self._totals.stats(mx.get_peak_memory(), self._policy.why if self._drafting else ""),
            finish_reason=item.finish,
            segments=tuple(join_segments(segment for part in parts for segment in part)),
            logprobs=item.logprobs,
            stopped_by=self._detokenizer.stopped_by,
            trace=trace_of(item, parts),
        )


def run(turn: TextTurn, loop: RoundLoop, on_prefill: Callable[[int, int], None] | None) -> Iterator[Chunk]:
    """Yield the chunks of one turn alone. Closed early, or where `on_prefill` raises, the caches are kept."""
    mx.reset_peak_memory()
    with closing(turn):
        while turn.reading:
            progress = turn.read_chunk()
            if on_prefill and progress:
                on_prefill(*progress)
        loop.resume()
        while turn.finish is None:
            with turn.failing():
                yield turn.take(loop.round([turn.turn])[turn.turn])
