"""Requests in the model's chat template, as far as that template takes what they ask for."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any, TypeVar

from mlxmtp.engine.control_tokens import map_strings
from mlxmtp.engine.prompt import Rendered, apply_template, render
from mlxmtp.engine.strict_templates import simpler_forms
from mlxmtp.errors import PromptError, TemplateLimitError
from mlxmtp.server.history import later_system_as_user
from mlxmtp.server.request import Request

PROBES = ("mlxmtp_user", "mlxmtp_system")
"""Texts that no template has. They show where a template writes a later system message."""
HALF_A_PAIR = re.compile("[\ud800-\udfff]")
"""JSON can hold one."""
T = TypeVar("T")


def whole_characters(value: Any) -> Any:
    """The JSON value with U+FFFD for each half of a surrogate pair: clients cut texts there; no tokenizer takes it."""
    return map_strings(value, partial(HALF_A_PAIR.sub, "\ufffd"))


class ChatTemplate:
    """The chat template of a model.

    Args:
        tokenizer: mlx-lm's `TokenizerWrapper`.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def text(self, request: Request) -> str:
        """The text of a request's messages; errors as of `render`."""
        return self._apply(apply_template, request, request.options.thinking)

    def render(self, request: Request, thinking: bool | None) -> Rendered:
        """The token ids of a request's messages, with boundaries.

        Raises:
            PromptError: the template refuses the messages, or a variable that the client names.
        """
        return self._apply(render, request, thinking)

    def _apply(self, function: Callable[..., T], request: Request, thinking: bool | None) -> T:
        messages: Any = whole_characters(request.messages)
        if not self._keeps_later_system:
            messages = later_system_as_user(messages)
        variables = dict(request.thinking.variables)
        hints = dict(request.thinking.hints) | ({} if thinking is None else {"thinking": thinking})
        tools = whole_characters(request.tools) or None
        apply = partial(function, self._tokenizer, messages, tools=tools, thinking=thinking)
        if hints:
            try:
                return apply(options=hints | variables)
            except TemplateLimitError:
                raise
            except PromptError:  # some templates raise an error for an effort that they do not know
                pass
        return apply(options=variables)

    @cached_property
    def _keeps_later_system(self) -> bool:
        """Whether the template writes a system message after the user's where it stands."""
        user, system = PROBES
        talk = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "."}]
        talk += [{"role": "user", "content": user}, {"role": "system", "content": system}]
        try:
            text = apply_template(self._tokenizer, talk)
            refused = text == apply_template(self._tokenizer, simpler_forms(talk)[0])
        except PromptError:
            return False
        return not refused and system in text.rpartition(user)[2]
