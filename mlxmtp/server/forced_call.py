"""A tool call that the request forces: the text that begins it, and the grammar of the rest.

Chat templates write calls in their own ways. The template writes a call with arguments that are easy to find again, and
the text around them is taken.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from os.path import commonprefix
from typing import Any

from llguidance import LLMatcher

from mlxmtp.engine.grammar import WHITESPACE, call_end_token
from mlxmtp.engine.prompt import apply_template
from mlxmtp.engine.schemas import literals_of, target_of, types_of
from mlxmtp.server.errors import ApiError
from mlxmtp.server.tools import Tool

NAMES = ("mlxmtp_first", "mlxmtp_second")
"""Argument names that no tool has."""
VALUES = ("mlxmtp_one", "mlxmtp_two")
"""Their values."""


@dataclass(frozen=True)
class ForcedCall:
    """Args:
    opening: the text up to the first argument; without a named tool, up to the name.
    grammar: the text after it, up to the marker that ends the call (`GenerationOptions.call_grammar`). None: the
        template writes calls in a way that no grammar here follows; the call is then only checked.
    """

    opening: str
    grammar: str | None


def forced_call(tokenizer: Any, tools: list[Tool], choice: str) -> ForcedCall:
    """The call that a request forces.

    Args:
        tokenizer: mlx-lm's `TokenizerWrapper`.
        tools: all tools of the request.
        choice: the name of a tool, or "required".

    Raises:
        ApiError: the template does not say how a call begins.
    """
    named = [tool for tool in tools if tool["function"]["name"] == choice]
    calls = [_Call(tokenizer, tools, tool["function"]) for tool in named or tools]
    try:
        opening = calls[0].before_arguments() if named else calls[0].before_name()
    except Exception as error:  # a template may raise anything; ValueError: it writes calls in another way
        message = "this model's chat template does not say how a call begins; use auto"
        raise ApiError(
            f"tool_choice {json.dumps(choice)}: {message}", code="unsupported_parameter", param="tool_choice"
        ) from error
    return ForcedCall(opening, _grammar(calls, opening))


class _Call:
    """How the chat template writes a call of one function."""

    def __init__(self, tokenizer: Any, tools: list[Tool], function: Mapping[str, Any]) -> None:
        self._tokenizer = tokenizer
        self._tools = tools
        self.name: str = function["name"]
        parameters = function.get("parameters")
        self._schema: dict[str, Any] = {"type": "object"} | dict(parameters if isinstance(parameters, Mapping) else {})
        self._start: str = tokenizer.tool_call_start

    def written(self, number: int) -> str:
        """The call with this number of arguments, and all after it."""
        arguments = dict(zip(NAMES[:number], VALUES, strict=False))
        call = {"type": "function", "id": "1", "function": {"name": self.name, "arguments": arguments}}
        messages: list[Any] = [
            {"role": "user", "content": "?"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
        ]
        text = apply_template(self._tokenizer, messages, tools=self._tools, add_generation_prompt=False)
        return text[text.index(self._start, text.rindex("?")) :]

    def before_name(self) -> str:
        """The start marker and the space after it."""
        text = self.written(1)
        rest = text[len(self._start) : text.index(self.name, len(self._start))]
        return self._start + rest[: len(rest) - len(rest.lstrip())]

    def before_arguments(self) -> str:
        """The text up to the last space before the first argument."""
        text = self.written(1)
        after_name = text.index(self.name, len(self._start)) + len(self.name)
        between = text[after_name : text.index(NAMES[0])]
        return text[:after_name] + between[: max(between.rfind(" "), between.rfind("\n"), 0)].rstrip()

    def rules(self, opening: str, rule: str) -> list[str]:
        """The Lark rules of the text between the opening and the end marker; the first is named `rule`.

        Raises:
            ValueError: the template writes calls in another way.
        """
        one = self._rest(1, opening)
        for separators in ((", ", ": "), (",", ":")):
            if (written := json.dumps({NAMES[0]: VALUES[0]}, separators=separators)) in one:
                before, after = one.split(written)
                return [f"{rule}: {_text(before)} {rule}_json {_text(after)}", f"{rule}_json: {_json(self._schema)}"]
        return self._rules_of_each_argument(opening, rule, one)

    def _rules_of_each_argument(self, opening: str, rule: str, one: str) -> list[str]:
        """The rules where the template writes each argument by itself, as text; in the order of the schema."""
        before, after_name = one.split(NAMES[0])
        between, end = after_name.split(VALUES[0])
        _, second = self._rest(2, opening).split(VALUES[0])
        next_argument, after_next = second.split(NAMES[1])
        opens = commonprefix([before[::-1], next_argument[::-1]])[::-1]  # noqa: RUF071 - nothing here is a path
        head, closing = before.removesuffix(opens), next_argument.removesuffix(opens)
        if not opens or not closing or after_next != between + VALUES[1] + end or not end.startswith(closing):
            raise ValueError("arguments are not written alike")
        properties = self._schema.get("properties") or {}
        if not properties and self._schema.get("additionalProperties") is not False:
            raise ValueError("the arguments are not named")
        required = self._schema.get("required") or []
        shared = {name: self._schema[name] for name in ("$defs", "definitions") if name in self._schema}
        uses: list[str] = []
        rules: list[str] = []
        for name, schema in properties.items():
            own = f"{rule}_{len(rules)}"
            uses.append(own if name in required else f"{own}?")
            start = _text(opens + name + between)
            if "string" not in types_of(schema, self._schema):
                rules.append(f"{own}: {start} {own}_value {_text(closing)}\n{own}_value: {_json(shared | schema)}")
            elif texts := _texts(schema, self._schema):
                rules.append(f"{own}: {start} ({' | '.join(map(_text, texts))}) {_text(closing)}")
            else:
                rules.append(f"{own}: {start} {own}_value\n{own}_value[suffix={_text(closing)}]: /(.|\\n)*/")
        return [f"{rule}: {_text(head)} {' '.join(uses)} {_text(end.removeprefix(closing))}", *rules]

    def _rest(self, number: int, opening: str) -> str:
        """The call after the opening, without its end marker."""
        text, end = self.written(number), self._tokenizer.tool_call_end
        if not end or not text.startswith(opening):
            raise ValueError("calls have no end marker")
        rest = text[len(opening) : text.index(end)]
        special = (token.content for token in self._tokenizer.added_tokens_decoder.values())
        if any(content in rest for content in special):
            raise ValueError("a token with a meaning of its own is part of the call")
        return rest if call_end_token(self._tokenizer) is not None else rest + end


def _grammar(calls: list[_Call], opening: str) -> str | None:
    """The grammar of the rest of one of these calls; None: there is none that the matcher reads."""
    try:
        rules = [rule for call, i in zip(calls, count(), strict=False) for rule in call.rules(opening, f"call{i}")]
    except Exception:  # a template may raise anything
        return None
    grammar = "\n".join([f"start: {' | '.join(f'call{i}' for i in range(len(calls)))}", *rules])
    return None if LLMatcher.validate_grammar(LLMatcher.grammar_from_lark(grammar)) else grammar


def _text(text: str) -> str:
    """A text as Lark writes it."""
    return json.dumps(text, ensure_ascii=False)


def _json(schema: Mapping[str, Any]) -> str:
    return "%json " + json.dumps(dict(schema) | {"x-guidance": {"whitespace_pattern": WHITESPACE}})


def _texts(schema: Any, root: Any) -> list[str]:
    """The values that a schema lists, where all are strings; strings are written as they are."""
    values = literals_of(target_of(schema, root)) if isinstance(schema, Mapping) else None
    return values if values and all(isinstance(value, str) for value in values) else []
