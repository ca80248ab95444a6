"""What a turn's text is made of: what is said, what is thought, what is called."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from mlx_lm.generate import TextStateMachine, make_text_state_machine

Kind = Literal["text", "thinking", "tool"]
_KINDS: dict[str | None, Kind] = {"reasoning": "thinking", "tool": "tool"}
_JSON_TYPES: dict[str, tuple[type, ...]] = {
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "object": (dict,),
    "array": (list,),
}


@dataclass(frozen=True)
class Segment:
    """Text of one kind, without the marks around it. Two calls have a part of text between them, be it empty."""

    kind: Kind
    text: str


class OutputParser:
    """Splits a turn as it comes, with mlx-lm's state machine; text that may be the start of a mark is held back.

    Args:
        tokenizer: mlx-lm's `TokenizerWrapper`.
        prompt: its token ids; some templates open the thinking themselves.
        opening: text at the prompt's end that is the answer's beginning.
    """

    def __init__(self, tokenizer: Any, prompt: list[int], opening: str = "") -> None:
        thinks = not opening and opens_thinking(tokenizer, prompt)
        initial = "reasoning" if thinks else tokenizer.response_initial_state or "normal"
        self._state = make_text_state_machine(tokenizer).make_state(initial)
        self._opening = opening

    def feed(self, text: str) -> tuple[Segment, ...]:
        """The parts that have become certain."""
        self._state, segments = TextStateMachine.split(self._state, self._opening + text)
        self._opening = ""
        return tuple(Segment(_KINDS.get(state, "text"), said) for state, said in segments)

    def finish(self) -> tuple[Segment, ...]:
        """The turn is over: what was held back."""
        self._state, said, state = TextStateMachine.flush(self._state)
        return (Segment(_KINDS.get(state, "text"), said),) if said else ()


def opens_thinking(tokenizer: Any, prompt: list[int]) -> bool:
    """Whether the prompt ends with the mark; elsewhere, somebody writes about it."""
    if not tokenizer.has_thinking or (start := tokenizer.rfind_think_start(prompt)) < 0:
        return False
    behind = prompt[start + len(tokenizer.think_start_tokens) :]
    return not behind or not tokenizer.decode(behind).strip()


def joined(parts: Iterable[Segment]) -> list[Segment]:
    """Neighbours of a kind as one."""
    whole: list[Segment] = []
    for part in parts:
        if whole and whole[-1].kind == part.kind:
            whole[-1] = Segment(part.kind, whole[-1].text + part.text)
        else:
            whole.append(part)
    return whole


def message(tokenizer: Any, parts: Iterable[Segment]) -> dict[str, Any]:
    """A turn as a chat message for the next prompt, as templates expect it.

    Calls that the model's own parser does not understand stay text, with their marks.
    """
    said, thought, calls = "", "", []
    for part in joined(parts):
        if part.kind == "thinking":
            thought += part.text
        elif part.kind == "text":
            said += part.text
        elif (call := calls_of(tokenizer, part.text)) is not None:
            calls += call
        else:
            said += f"{tokenizer.tool_call_start}{part.text}{tokenizer.tool_call_end or ''}"
    answer: dict[str, Any] = {"role": "assistant", "content": said.strip("\n") if thought or calls else said}
    if thought:
        answer["reasoning_content"] = thought.strip("\n")
    if calls:
        answer["tool_calls"] = [{"type": "function", "function": call} for call in calls]
    return answer


def calls_of(tokenizer: Any, text: str, tools: Iterable[dict[str, Any]] | None = None) -> list[dict[str, Any]] | None:
    """The calls, each {"name": ..., "arguments": {...}}, that the model's own parser finds in a part; None: none.

    Args:
        tools: as the chat template had them: arguments get the types that their schemas ask for.
    """
    tools = list(tools or ())
    try:
        found = tokenizer.tool_parser(text, tools or None)
        calls = json.loads(json.dumps(found if isinstance(found, list) else [found]))  # some read Python's literals
    except Exception:  # each parser has its own way to fail on what a model makes up
        return None
    if not calls or not all(map(_is_call, calls)):
        return None
    schemas = {tool["function"]["name"]: tool["function"].get("parameters") or {} for tool in tools}
    return [call | {"arguments": _typed(call["arguments"], schemas.get(call["name"], {}))} for call in calls]


def _is_call(call: Any) -> bool:
    return isinstance(call, dict) and isinstance(call.get("name"), str) and "arguments" in call


def _typed(value: Any, schema: Any) -> Any:
    """A value in the type of its schema, where the model wrote that value as a string."""
    if not isinstance(schema, dict):
        return value
    wanted = schema.get("type")
    kinds = wanted if isinstance(wanted, list) else [wanted]
    if isinstance(value, str) and "string" not in kinds:
        try:
            read = json.loads(value)
        except ValueError:
            return value
        value = read if any(type(read) in _JSON_TYPES.get(str(kind), ()) for kind in kinds) else value
    inner = schema.get("properties")
    if isinstance(value, dict) and isinstance(inner, dict):
        return {name: _typed(one, inner.get(name)) for name, one in value.items()}
    if isinstance(value, list):
        return [_typed(one, schema.get("items")) for one in value]
    return value
