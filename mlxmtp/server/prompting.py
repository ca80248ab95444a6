"""From a request to the token ids that the engine reads: chat template, forced calls, room in the context."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from mlxmtp.engine.prompt import Rendered, count_tokens, encode, render, written
from mlxmtp.engine.request import GenerationOptions
from mlxmtp.errors import PromptError
from mlxmtp.server.problems import ApiError, too_long
from mlxmtp.server.request import Message, Request
from mlxmtp.worker.messages import Generate

PROBE = "mlxmtp_probe"
"""An argument that no tool has, to see how the template writes a call."""
PIECE = 50_000
"""Characters that are tokenised at a time, to see whether a long prompt fits: others come between the pieces."""
LONG = 10 * PIECE
"""Characters of a prompt that is looked at so."""
TORN = 16
"""Tokens that a piece can have more than the same text has within the whole, its ends being torn from the rest."""
T = TypeVar("T")


@dataclass(frozen=True)
class Prepared:
    """A turn, ready for the engine."""

    tokens: list[int]
    boundaries: list[int]
    opening: str
    settings: GenerationOptions
    raw: bool = False

    def command(self, number: int) -> Generate:
        return Generate(number, self.tokens, self.settings, self.boundaries, self.opening, self.raw)


class Prompter:
    """Renders and tokenises, in a thread of its own: a long prompt must not hold up the other requests.

    Args:
        tokenizer: mlx-lm's `TokenizerWrapper`. context: the most tokens, prompt and answer together.
    """

    def __init__(self, tokenizer: Any, context: int) -> None:
        self.tokenizer = tokenizer
        self.context = context
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tokenizer")

    async def prepare(self, request: Request) -> Prepared:
        """Raises ApiError: the template refuses, a token id does not exist, or the prompt does not fit."""
        if (least := await self._least(request, self.context)) >= self.context:
            raise too_long(least, self.context, at_least=True)
        return await self._in_thread(self._prepare, request)

    async def count(self, request: Request) -> int:
        """The prompt's tokens; of one that is long and does not fit, nearly so many."""
        if (least := await self._least(request)) >= self.context:
            return least
        tokens, _ = await self._in_thread(self._tokens, request)
        return len(tokens.tokens)

    async def _least(self, request: Request, enough: int | None = None) -> int:
        """What a long prompt has of tokens at least, counted up to `enough`; 0 of one that is not long.

        Tokenising a long text cannot be broken off, and takes minutes for the largest; between pieces of it,
        whoever asks can leave and others have their turn.
        """
        if isinstance(request.messages, str):
            text = request.messages
        elif request.raw or _characters([request.messages, request.tools], LONG) < LONG:
            return 0
        else:
            text = await self._in_thread(self._text, request)
        least = 0
        for start in range(0, len(text) if len(text) > LONG else 0, PIECE):
            count = await self._in_thread(self._counted, request, text[start : start + PIECE])
            least += max(count - TORN, 0)
            if enough is not None and least >= enough:
                break
        return least

    async def _in_thread(self, work: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)

    def _prepare(self, request: Request) -> Prepared:
        rendered, opening = self._tokens(request)
        left = self.context - len(rendered.tokens)
        if left < 1:
            raise too_long(len(rendered.tokens), self.context)
        if bad := [token for token in dict(request.settings.logit_bias) if token >= len(self.tokenizer)]:
            what = f"token id {bad[0]} is outside the vocabulary; expected 0 to {len(self.tokenizer) - 1}"
            raise ApiError(f"logit_bias: {what}", code="invalid_value", param="logit_bias")
        wanted = request.settings.max_tokens
        settings = replace(request.settings, max_tokens=left if wanted is None else min(wanted, left))
        return Prepared(rendered.tokens, list(rendered.boundaries), opening, settings, request.raw)

    def _text(self, request: Request) -> str:
        messages: Any = request.messages
        with _refusing(request):
            return written(self.tokenizer, messages, tools=request.tools or None)

    def _counted(self, request: Request, piece: str) -> int:
        with _refusing(request):
            return count_tokens(self.tokenizer, piece)

    def _tokens(self, request: Request) -> tuple[Rendered, str]:
        with _refusing(request):
            if request.raw:
                return Rendered(encode(self.tokenizer, request.messages, raw=True), ()), ""
            forced = request.choice != "auto"
            thinking = False if forced else request.settings.thinking  # a forced call does not think first
            messages: Any = request.messages
            rendered = render(self.tokenizer, messages, tools=request.tools or None, thinking=thinking)
            if not forced:
                return rendered, ""
            opening = self._opening(request)
            tokens = self.tokenizer.encode(opening, add_special_tokens=False)
            return Rendered([*rendered.tokens, *tokens], rendered.boundaries), opening

    def _opening(self, request: Request) -> str:
        """The beginning of a call, of the named tool or of any, as the template writes one."""
        start = self.tokenizer.tool_call_start
        named = None if request.choice == "required" else request.choice
        name = named or request.tools[0]["function"]["name"]
        call = {"type": "function", "id": "1", "function": {"name": name, "arguments": {PROBE: PROBE}}}
        answer: Message = {"role": "assistant", "content": "", "tool_calls": [call]}
        try:
            text = self.tokenizer.apply_chat_template(
                [{"role": "user", "content": "?"}, answer], tools=request.tools, tokenize=False
            )
            written = text[text.index(start, text.rindex("?")) : text.index(PROBE)]
            until = written.index(name, len(start))
        except Exception as error:  # templates raise what they please; ValueError where the call is written otherwise
            what = f"tool_choice {json.dumps(request.choice)}"
            message = f"{what}: this model's chat template does not say how a call begins; use auto"
            raise ApiError(message, code="unsupported_parameter", param="tool_choice") from error
        if named:  # the name, and what ends it, up to the first argument
            behind = written[until + len(name) :]
            return str(written[: until + len(name)] + behind[: _last_space(behind)].rstrip())
        space = written[len(start) : until]
        return str(start + space[: len(space) - len(space.lstrip())])


@contextmanager
def _refusing(request: Request) -> Iterator[None]:
    try:
        yield
    except PromptError as error:
        param = "prompt" if request.raw else "messages"
        raise ApiError(str(error), code="invalid_prompt", param=param) from error


def _characters(value: Any, enough: int) -> int:
    """The characters of all texts within a JSON value, counted up to about `enough`."""
    if isinstance(value, str):
        return len(value)
    count = 0
    for one in value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ():
        count += _characters(one, enough - count)
        if count >= enough:
            break
    return count


def _last_space(text: str) -> int:
    return max(text.rfind(" "), text.rfind("\n"), 0)
