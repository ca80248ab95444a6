"""Whether the model is to think, in the spellings of OpenAI, Anthropic, OpenRouter, DeepSeek, GLM, Qwen and Ollama."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mlxmtp.server.body import JsonObject

TYPES = {"enabled": True, "disabled": False, "adaptive": None, "auto": None}
"""`thinking.type` -> whether to think; None: the chat template's default."""
NO_EFFORT = ("none", "minimal", "off", "disabled", "disable", "false", "no")
"""Efforts that ask for an answer without thinking."""
BUDGETS = ("thinking_budget", "reasoning_budget", "thinking_token_budget")
"""Tokens of thinking: 0 for no thinking, -1 for no limit."""
SWITCHES = ("enable_thinking", "thinking")
"""Names of the switch in chat templates: of Qwen and GLM, and of DeepSeek and Kimi."""
RESERVED = (
    *("messages", "conversation", "tools", "documents", "chat_template", "add_generation_prompt", "tokenize"),
    *("continue_final_message", "padding", "truncation", "max_length", "return_tensors", "return_dict"),
    *("return_assistant_tokens_mask", "tokenizer_kwargs"),
)
"""Arguments of `apply_chat_template` that are no variables of a template."""


@dataclass(frozen=True)
class Thinking:
    """What a request says about thinking.

    Args:
        enabled: None: the chat template's default.
        budget: most tokens of the thinking; None: no limit.
        shown: whether the answer has the thinking.
        variables: variables of the chat template that the client names itself.
        hints: further variables that follow from the fields. A template that refuses them is rendered without them.
    """

    enabled: bool | None = None
    budget: int | None = None
    shown: bool = True
    variables: Mapping[str, Any] = field(default_factory=dict)
    hints: Mapping[str, Any] = field(default_factory=dict)


def parse_thinking(body: JsonObject) -> Thinking:
    """What the fields of a body say about thinking. The first field that switches it on or off decides."""
    template = body.object("chat_template_kwargs")
    if template:
        for name in RESERVED:
            template.reject_unless(name)
    variables = {name: value for name, value in template.content.items() if value is not None} if template else {}
    reasoning = _object_or_none(body, "reasoning")
    hidden = [body.boolean("include_reasoning") is False, bool(reasoning and reasoning.boolean("exclude"))]
    wishes = list(_wishes(body, template, reasoning))  # all of them, so that each field is checked
    enabled = next((wish for wish in wishes if wish is not None), None)
    hints = _hints(body, reasoning)
    return Thinking(
        enabled,
        _budget(body, reasoning),
        shown=not any(hidden),
        variables={name: value for name, value in variables.items() if name not in SWITCHES},
        hints={name: value for name, value in hints.items() if name not in variables},
    )


def _wishes(body: JsonObject, template: JsonObject | None, reasoning: JsonObject | None) -> Iterator[bool | None]:
    """Whether to think, as each field says."""
    if template:
        yield from map(template.boolean, SWITCHES)
    yield body.boolean("enable_thinking")
    yield _thinking_field(body)
    if reasoning:
        yield reasoning.boolean("enabled")
        yield _by_effort(reasoning.string("effort"))
        budget = reasoning.integer("max_tokens", 0)
        yield None if budget is None else budget > 0
    else:
        yield _switch(body, "reasoning")
    yield _switch(body, "think")
    yield False if body.boolean("disable_reasoning") else None
    yield False if any(body.integer(name, -1) == 0 for name in BUDGETS) else None
    yield _by_effort(body.string("reasoning_effort"))


def _budget(body: JsonObject, reasoning: JsonObject | None) -> int | None:
    """The lowest limit of the thinking, in Anthropic's, OpenRouter's, Qwen's, llama.cpp's or vLLM's spelling."""
    thinking = _object_or_none(body, "thinking")
    budgets = [thinking.integer("budget_tokens", -1) if thinking else None]
    budgets += [reasoning.integer("max_tokens", 0) if reasoning else None]
    budgets += [body.integer(name, -1) for name in BUDGETS]
    return min((budget for budget in budgets if budget and budget > 0), default=None)


def _hints(body: JsonObject, reasoning: JsonObject | None) -> dict[str, Any]:
    """The effort, and whether earlier thinking stays in the prompt, under the names that chat templates have."""
    hints: dict[str, Any] = {}
    if effort := (reasoning.string("effort") if reasoning else None) or body.string("reasoning_effort"):
        hints["reasoning_effort"] = effort
    thinking = _object_or_none(body, "thinking")
    cleared = thinking.boolean("clear_thinking") if thinking else None
    preserved = body.boolean("preserve_thinking") if cleared is None else not cleared
    if preserved is not None:
        hints |= {"preserve_thinking": preserved, "clear_thinking": not preserved}
    return hints


def _thinking_field(body: JsonObject) -> bool | None:
    """The field `thinking`: a switch, or an object; one without a type says nothing."""
    thinking = _object_or_none(body, "thinking")
    if not thinking:
        return _switch(body, "thinking")
    kind = thinking.string("type")
    if kind is None:
        return None
    if kind not in TYPES:
        thinking.reject("type", ", ".join(TYPES))
    return TYPES[kind]


def _switch(body: JsonObject, name: str) -> bool | None:
    """A field that is true, false or an effort."""
    value = body.get(name)
    if value is None or isinstance(value, bool):
        return value
    if not isinstance(value, str):
        body.reject(name, "true, false or an effort")
    return _by_effort(value)


def _by_effort(effort: str | None) -> bool | None:
    return None if effort is None else effort.lower() not in NO_EFFORT


def _object_or_none(body: JsonObject, name: str) -> JsonObject | None:
    return body.object(name) if isinstance(body.get(name), Mapping) else None
