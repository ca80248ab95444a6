"""The engine: a model with its head, which generates turns of text."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Unpack

from mlxmtp.decoding.loop import RoundLoop
from mlxmtp.decoding.sequence import PREFILL_TOKENS
from mlxmtp.decoding.turn import Turn
from mlxmtp.engine.generate import Chunk, Result, TextTurn, TurnArguments, result_of, run
from mlxmtp.engine.grammar import token_trie
from mlxmtp.engine.head_fit import HeadFit
from mlxmtp.engine.in_step import LeadingLoop, LeadingTurn, Steps, check_reuse, with_shared_seed
from mlxmtp.engine.output import OutputParser, Segment, StreamingDetokenizer, assistant_message
from mlxmtp.engine.policies import DepthPolicies
from mlxmtp.engine.prefix_cache import PrefixCache
from mlxmtp.engine.prompt import Prompt, encode, render_prompt
from mlxmtp.engine.request import GenerationOptions, check_count
from mlxmtp.engine.retokenization import TokenUnits, restore_generated_ids
from mlxmtp.engine.scheduler import Scheduler
from mlxmtp.engine.store import ModelFacts, establish_guarantee, establish_sharing
from mlxmtp.engine.turn_sampler import turn_sampler
from mlxmtp.errors import PromptError
from mlxmtp.exactness.compare import OnPass
from mlxmtp.exactness.guarantee import Guarantee, Identity
from mlxmtp.exactness.shared import why_apart
from mlxmtp.heads import Head, HeadSource, NarrowedLogits
from mlxmtp.heads.check import TEXT
from mlxmtp.ranks import Ranks
from mlxmtp.targets import Target, check_ids

DEFAULTS = GenerationOptions()


class Engine:
    """A loaded model; `mlxmtp.load` makes one. Each turn has caches of its own.

    Args:
        path: the folder of the checkpoint.
        name: what the user called the model.
        mtp: the MTP head; None decodes plainly.
        plain_because: why there is no head; None with a head.
        head_source: where the head comes from.
        identity, on_check: as in `mlxmtp.load`.
        draft_tokens: the only token ids that the head drafts; None: all.
        narrowed: the head's logits over a narrowed draft vocabulary that the policy may use; None: there is none.
        ranks: those that share the trunk and generate the same turns; None: this process has all of it.

    Attributes:
        head: the name of the head's family, or None.
        fit: says, asked after a turn, if the head turns out not to belong to the model.
    """

    def __init__(
        self,
        path: Path,
        name: str,
        target: Target,
        tokenizer: Any,
        mtp: Head | None,
        plain_because: str | None,
        head_source: HeadSource | None = None,
        identity: Identity = "fast",
        draft_tokens: list[int] | None = None,
        on_check: OnPass = lambda *_: None,
        narrowed: NarrowedLogits | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.path, self.name = path, name
        self.target = target
        self.tokenizer = tokenizer
        self.mtp = mtp
        self.head = mtp.family if mtp else None
        self.plain_because = plain_because
        self.head_source = head_source
        self.identity, self._on_check = identity, on_check
        self.draft_tokens = draft_tokens
        self.narrowed = narrowed
        self.ranks, self._num_sequences = ranks, 1
        self.fit = HeadFit(target, None if ranks or draft_tokens else mtp)

    @property
    def context(self) -> int:
        """Most tokens, prompt and answer together, that the model was made for."""
        return self.target.context or 2**31 - 1

    @property
    def facts(self) -> ModelFacts:
        """What the saved files of this model depend on."""
        ranks = self.ranks.size if self.ranks else 1
        return ModelFacts(self.path, self.target, self.mtp, self.head_source, self.draft_tokens, ranks)

    @cached_property
    def probe_text(self) -> list[int]:
        """Token ids of the text on which a guarantee is measured."""
        return encode(self.tokenizer, TEXT, raw=True)

    @cached_property
    def guarantee(self) -> Guarantee:
        """What holds of the text under `identity`, compared with plain decoding.

        It is loaded, or else measured and saved: this takes as long as some hundred tokens, once for a model on a
        machine. With ranks nothing is measured.
        """
        return establish_guarantee(self.facts, self.identity, self.probe_text, self._on_check)

    def share_passes(self, num_sequences: int) -> Guarantee:
        """Return `guarantee`, which from now on says what holds of passes over up to `num_sequences` sequences too."""
        if num_sequences > self._num_sequences:
            known = self.facts, self.identity, self.guarantee, self.probe_text
            self.guarantee = establish_sharing(*known, num_sequences, self.why_apart, self._on_check)
            self._num_sequences = num_sequences
        return self.guarantee

    @property
    def token_identical(self) -> bool:
        """Whether tokens that follow from the logits, at temperature 0 or with a seed, are those of plain decoding."""
        return self.guarantee.identical

    def enforce_identity(self) -> None:
        """Compute as `identity` asks; where that cannot be exact, drop the head."""
        if self.identity != "fast" and not self.guarantee.identical and self.mtp:
            self.mtp = self.head = self.head_source = None
            self.plain_because = f"{self.identity} identity cannot be kept here: {self.guarantee.because}"

    def stream(
        self,
        prompt: Prompt,
        options: GenerationOptions = DEFAULTS,
        *,
        on_prefill: Callable[[int, int], None] | None = None,
        **arguments: Unpack[TurnArguments],
    ) -> Iterator[Chunk]:
        """Generate a turn; yield a chunk for each round. Closing the iterator stops at once.

        Args:
            on_prefill: called with (done, total) tokens after each chunk of the prompt.

        Other arguments and errors as in `open_turn`.
        """
        return run(self.open_turn(prompt, options, **arguments), self.round_loop(), on_prefill)

    def open_turn(
        self,
        prompt: Prompt,
        options: GenerationOptions = DEFAULTS,
        *,
        raw: bool = False,
        prefill_tokens: int = PREFILL_TOKENS,
        prefix_cache: PrefixCache | None = None,
        boundaries: Sequence[int] = (),
        opening: str = "",
        conversation: bool = False,
    ) -> TextTurn:
        """Prepare a turn; nothing is computed before its first chunk.

        Args:
            prompt: a text (one user message, unless `raw` or without a chat template), messages, or token ids.
            options: how the turn is generated.
            raw: continue a text as it is, without the chat template. What is generated is one text.
            prefill_tokens: tokens of the prompt in one forward pass.
            prefix_cache: caches of earlier turns; this turn reuses the longest prefix, and adds its own caches.
            boundaries: for a prompt of token ids, the token counts where other prompts may branch
                (`mlxmtp.engine.prompt.Rendered`). For messages they are found.
            opening: the end of the prompt that is the beginning of the answer; it is also in `Chunk.segments`.
            conversation: the token ids are those of a rendered conversation. Where an earlier turn wrote an answer in
                it with other ids of the same text, the prompt gets those. For messages this is always so.

        Raises:
            OptionError, PromptError: at once, before anything is computed.

        The turn raises NumericsError where the model's logits are not finite.
        """
        started = time.perf_counter()
        check_count("prefill_tokens", prefill_tokens)
        rendered = render_prompt(self.tokenizer, prompt, raw=raw, thinking=options.thinking)
        check_ids(rendered.tokens, self.target.vocab_size)
        drafting = self.mtp is not None and options.depth != 0
        if prefix_cache:
            rendered = replace(rendered, boundaries=(*rendered.boundaries, *boundaries))
            if conversation or rendered.conversation:
                known, units = prefix_cache.prefix_infos(self.target, self.mtp), self._token_units
                rendered = restore_generated_ids(rendered, known, units, drafting=drafting, context=self.context)
        tokens = rendered.tokens
        room = self.context - len(tokens)
        if room < 1:
            raise PromptError(
                f"the prompt has {len(tokens)} tokens, the model's context {self.context}; "
                "shorten the prompt so that at least one token fits behind it"
            )
        make_turn: Callable[..., TextTurn] = TextTurn
        if self._steps:
            options = with_shared_seed(options)
            make_turn = partial(LeadingTurn, self._steps, self._steps.job(options, prefix_cache, raw, opening))
        sampler = turn_sampler(options, tokens, self.tokenizer, self.target.vocab_size, lambda: self._token_trie)
        before_policy = time.perf_counter()
        policy = self.policies.of(options.depth)  # the first call may measure the guarantee, which is not its time
        started += time.perf_counter() - before_policy
        parser = OutputParser(self.tokenizer, tokens, opening, raw=raw)
        return make_turn(
            self.target,
            self.mtp,
            drafting=drafting,
            detokenizer=StreamingDetokenizer(self.tokenizer, options.stop, parser, tool_calls=options.tool_calls),
            parser=parser,
            sampler=sampler,
            policy=policy,
            prefix_cache=prefix_cache or PrefixCache(0),
            logprobs=options.logprobs,
            narrowed=self.narrowed,
            prompt=tokens,
            max_tokens=room if options.max_tokens is None else min(options.max_tokens, room),
            boundaries=rendered.boundaries if prefix_cache else (),
            prefill_tokens=prefill_tokens,
            started=started,
            fit=self.fit,
            on_reuse=partial(check_reuse, self.ranks) if self.ranks else lambda _: None,
            on_close=self.policies.save if options.depth is None else lambda: None,
        )

    def generate(
        self,
        prompt: Prompt,
        options: GenerationOptions = DEFAULTS,
        *,
        on_prefill: Callable[[int, int], None] | None = None,
        **arguments: Unpack[TurnArguments],
    ) -> Result:
        """Generate a whole turn; arguments and errors as in `stream`."""
        return result_of([*self.stream(prompt, options, on_prefill=on_prefill, **arguments)])

    def batch(
        self,
        prompts: Sequence[Prompt],
        options: GenerationOptions = DEFAULTS,
        *,
        raw: bool = False,
        parallel: int = 4,
        prefix_cache: PrefixCache | None = None,
    ) -> list[Result]:
        """Generate several whole turns, `parallel` at once in shared passes; each has the text that it has alone.

        Args:
            prompts, options, raw, prefix_cache: as in `open_turn`; the options are those of every turn.

        Raises:
            OptionError, PromptError: at once. NumericsError: the logits of a turn are not finite.
        """
        check_count("parallel", parallel)
        cache = prefix_cache or PrefixCache(2**63 - 1)
        turns = [self.open_turn(prompt, options, raw=raw, prefix_cache=cache) for prompt in prompts]
        with closing(self.scheduler(parallel, cache)) as scheduler:
            return [*map(result_of, scheduler.run(turns))]

    def scheduler(self, parallel: int, prefix_cache: PrefixCache) -> Scheduler:
        """Return what runs several turns of this engine at once, which `open_turn` made with the same prefix cache."""
        sharing, nbytes = self.policies.sharing, prefix_cache.max_bytes

        def together(turns: Sequence[Turn]) -> int:
            return sharing.best(turns[: self.share_passes(parallel).max_sequences(1)]) if len(turns) > 1 else 1

        return Scheduler(self.round_loop(), parallel, together=together, on_round=sharing.observe, max_bytes=nbytes)

    def round_loop(self) -> RoundLoop:
        """Return what runs the rounds of turns."""
        return LeadingLoop(self._steps, self.target) if self._steps else RoundLoop(self.target)

    @cached_property
    def why_apart(self) -> str | None:
        """Why turns of this model cannot share passes; None: they can. Tried at the first call."""
        why = partial(why_apart, self.target, self.identity, self.guarantee)
        return self._steps.take(why, "try_sharing") if self._steps else why()

    def assistant_message(self, segments: Iterable[Segment]) -> dict[str, Any]:
        """Return a turn's segments as a chat message for the next prompt, with its tool calls parsed."""
        return assistant_message(self.tokenizer, segments)

    @cached_property
    def policies(self) -> DepthPolicies:
        """What chooses the depths of turns."""
        return DepthPolicies(self)

    @cached_property
    def _steps(self) -> Steps | None:
        """What rank 0 tells the others; None: there is nobody to tell."""
        return Steps(self.ranks) if self.ranks and self.ranks.leads else None

    @cached_property
    def _token_units(self) -> TokenUnits:
        return TokenUnits(self.tokenizer, lambda: self._token_trie)

    @cached_property
    def _token_trie(self) -> Any:
        return token_trie(self.tokenizer)
