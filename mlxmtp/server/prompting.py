"""The token ids of a request: chat template, forced tool calls, and what fits into the context."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from mlxmtp.engine.prompt import Rendered, count_tokens, encode
from mlxmtp.engine.request import GenerationOptions
from mlxmtp.engine.template import renderer
from mlxmtp.errors import PromptError
from mlxmtp.server.chat_template import ChatTemplate
from mlxmtp.server.errors import ApiError, context_length_exceeded
from mlxmtp.server.forced_call import ForcedCall, forced_call
from mlxmtp.server.request import Request
from mlxmtp.server.vocabulary import Vocabulary
from mlxmtp.targets import check_ids
from mlxmtp.worker.messages import Generate

CHUNK_CHARACTERS = 50_000
"""Characters of a long prompt that are tokenized at a time. Other requests are tokenized between the chunks."""
LONG_CHARACTERS = 10 * CHUNK_CHARACTERS
"""A prompt of at least this many characters is counted by chunks before it is tokenized as a whole."""
MAX_EXTRA_TOKENS = 16
"""Tokens that a chunk may have more than the same text within the prompt, because it is cut at both ends. They are
subtracted, so that the count of the chunks is a lower bound."""
T = TypeVar("T")


@dataclass(frozen=True)
class PreparedPrompt:
    """The prompt of a turn, ready for the engine.

    Args:
        tokens: its token ids.
        boundaries: token counts at which later prompts may branch.
        opening: the beginning of the answer, which is the end of the prompt.
        options: `max_tokens` is what the context has room for, or less.
        raw: the answer is not parsed.
    """

    tokens: list[int]
    boundaries: list[int]
    opening: str
    options: GenerationOptions
    raw: bool = False

    def command(self, number: int) -> Generate:
        """The command for the engine, with the id `number`."""
        return Generate(number, self.tokens, self.options, self.boundaries, self.opening, self.raw)


class PromptBuilder:
    """Renders and tokenizes prompts in a thread of its own, so that a long prompt does not block other requests.

    Args:
        tokenizer: mlx-lm's `TokenizerWrapper`.
        context: the most tokens of prompt and answer together.
        vocab_size: token ids are below it.
    """

    def __init__(self, tokenizer: Any, context: int, vocab_size: int) -> None:
        self.tokenizer = tokenizer
        self.vocabulary = Vocabulary(tokenizer)
        self.context = context
        self._vocab_size = vocab_size
        self._template = ChatTemplate(tokenizer)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tokenizer")

    async def prepare(self, request: Request) -> PreparedPrompt:
        """The prompt of a request.

        Raises:
            ApiError: the template refuses the messages, a token id does not exist, or the prompt does not fit.
        """
        if (tokens := await self._lower_bound(request, self.context)) >= self.context:
            raise context_length_exceeded(tokens, self.context, at_least=True)
        return await self._in_thread(self._prepare, request)

    async def count(self, request: Request) -> int:
        """The number of tokens of the prompt; for a long prompt that does not fit, a close lower bound."""
        if (tokens := await self._lower_bound(request)) >= self.context:
            return tokens
        rendered, _ = await self._in_thread(self._render, request)
        return len(rendered.tokens)

    def close(self) -> None:
        """Stop the thread, and cut the template that it renders."""
        with renderer().interrupted():
            self._thread.shutdown(cancel_futures=True)

    async def _lower_bound(self, request: Request, enough: int | None = None) -> int:
        """A lower bound of the tokens of a long prompt; 0 for a short one.

        Tokenizing cannot be interrupted, and takes minutes for the longest texts. Between the chunks a client can
        leave, and other requests have their turn.

        Args:
            enough: count up to this number only.
        """
        if isinstance(request.messages, str):
            text = request.messages
        elif request.raw or _count_characters([request.messages, request.tools], LONG_CHARACTERS) < LONG_CHARACTERS:
            return 0
        else:
            text = await self._in_thread(self._text, request)
        tokens = 0
        for start in range(0, len(text) if len(text) > LONG_CHARACTERS else 0, CHUNK_CHARACTERS):
            count = await self._in_thread(self._count, request, text[start : start + CHUNK_CHARACTERS])
            tokens += max(count - MAX_EXTRA_TOKENS, 0)
            if enough is not None and tokens >= enough:
                break
        return tokens

    async def _in_thread(self, work: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    def _prepare(self, request: Request) -> PreparedPrompt:
        rendered, forced = self._render(request)
        with _prompt_errors(request):
            check_ids(rendered.tokens, self._vocab_size)
        room = self.context - len(rendered.tokens)
        if room < 1:
            raise context_length_exceeded(len(rendered.tokens), self.context)
        try:
            check_ids([*dict(request.options.logit_bias)], self._vocab_size)
        except PromptError as error:
            raise ApiError(f"logit_bias: {error}", code="invalid_value", param="logit_bias") from error
        if request.options.logprobs is not None:
            self.vocabulary.prepare()
        limit = request.options.max_tokens
        options = replace(
            request.options,
            max_tokens=room if limit is None else min(limit, room),
            tool_calls=bool(request.callable_tools),
            call_grammar=forced.grammar if forced else None,
            json_schema=None if forced else request.options.json_schema,
        )
        opening = forced.opening if forced else ""
        return PreparedPrompt(rendered.tokens, list(rendered.boundaries), opening, options, request.raw)

    def _text(self, request: Request) -> str:
        with _prompt_errors(request):
            return self._template.text(request)

    def _count(self, request: Request, text: str) -> int:
        with _prompt_errors(request):
            return count_tokens(self.tokenizer, text)

    def _render(self, request: Request) -> tuple[Rendered, ForcedCall | None]:
        """The prompt, and the call that it begins."""
        with _prompt_errors(request):
            if request.raw:
                return Rendered(encode(self.tokenizer, request.messages, raw=True), ()), None
            forced = request.tool_choice != "auto"
            thinking = False if forced else request.options.thinking  # a forced call comes before any thinking
            rendered = self._template.render(request, thinking)
            if not forced:
                return rendered, None
            call = forced_call(self.tokenizer, request.callable_functions, request.tool_choice)
            tokens = self.tokenizer.encode(call.opening, add_special_tokens=False)
            return Rendered([*rendered.tokens, *tokens], rendered.boundaries), call


@contextmanager
def _prompt_errors(request: Request) -> Iterator[None]:
    """Turns `PromptError` into `ApiError`."""
    try:
        yield
    except PromptError as error:
        param = "prompt" if request.raw else "messages"
        raise ApiError(str(error), code="invalid_prompt", param=param) from error


def _count_characters(value: Any, enough: int) -> int:
    """The characters of all texts in a JSON value, counted up to about `enough`."""
    if isinstance(value, str):
        return len(value)
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    count = 0
    for item in items:
        count += _count_characters(item, enough - count)
        if count >= enough:
            break
    return count
