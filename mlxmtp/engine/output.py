"""From token ids to text, to segments of text, and to a chat message."""

import json
from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, Literal

from mlx_lm.generate import TextStateMachine, make_text_state_machine

from mlxmtp.decoding.loop import StopDecision
from mlxmtp.engine.schemas import target_of, types_of, types_of_value
from mlxmtp.files import parse_json

SegmentKind = Literal["text", "thinking", "tool"]
_KINDS: dict[str | None, SegmentKind] = {"reasoning": "thinking", "tool": "tool"}
"""mlx-lm's names of the states, where they are not "text"."""


class StreamingDetokenizer:
    """Turns the tokens of a turn into text, and finds where the turn ends.

    Text that may be the start of a stop string is held back until the next tokens decide. The stop string and the text
    after it are not part of the turn. Stop strings are looked for where `parser` finds text: not in the thinking. An
    end token counts as a token of the turn and has no text.

    Args:
        tokenizer: mlx-lm's `TokenizerWrapper`.
        stop: stop strings; they may straddle tokens and rounds.
        parser: the parser of the turn, before its first text. It is not changed.
        tool_calls: stop strings are not looked for in tool calls either.

    Attributes:
        stopped_by: the stop string that ended the turn, or None.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str], parser: "OutputParser", *, tool_calls: bool) -> None:
        self._detokenizer = tokenizer.detokenizer
        self._detokenizer.reset()
        self._end_tokens = tokenizer.eos_token_ids
        self._stop = sorted(stop, key=len, reverse=True)
        self._parser = copy(parser)
        self._parser.feed("")  # the opening, which is not of this turn
        self._without_stop = ("thinking", "tool") if tool_calls else ("thinking",)
        self._held = ""
        self._ready = ""
        self._pieces: list[str] = []
        self.stopped_by: str | None = None

    def feed(self, tokens: list[int]) -> StopDecision:
        """Read a round's tokens; return how many belong to the turn, and "stop" where the turn ends among them."""
        for count, token in enumerate(tokens, start=1):
            if token in self._end_tokens:
                self.finish()
                return StopDecision(count, "stop")
            self._detokenizer.add_token(token)
            ends = self._read()
            self._pieces.append(self._ready)
            self._ready = ""
            if ends:
                return StopDecision(count, "stop")
        return StopDecision(len(tokens), None)

    def finish(self) -> None:
        """End the turn: the text held back is ready."""
        self._detokenizer.finalize()
        if not self._read():
            self._release(len(self._held))

    def take(self) -> list[str]:
        """Return the text that has become ready since the last call: a piece for each token, and one for the end."""
        pieces, self._pieces, self._ready = [*self._pieces, self._ready], [], ""
        return pieces

    def _read(self) -> bool:
        """Take the detokenizer's new text; return whether it completes a stop string."""
        text = self._detokenizer.last_segment
        if not self._stop:
            self._ready += text
            return False
        for character in text:
            self._held += character
            is_searched = self._parser.kind not in self._without_stop
            if is_searched and (found := next(filter(self._held.endswith, self._stop), None)):
                self.stopped_by = found
                self._release(len(self._held) - len(found))
                self._held = ""
                return True
            passes_marker = len(self._parser.feed(character)) > 1
            if passes_marker or not is_searched:
                self._release(len(self._held))
        self._release(len(self._held) - max(_overlap(self._held, stop) for stop in self._stop))
        return False

    def _release(self, count: int) -> None:
        """Move characters from the held text to the ready one."""
        self._ready, self._held = self._ready + self._held[:count], self._held[count:]


def _overlap(text: str, stop: str) -> int:
    """The length of the longest suffix of `text` that is a prefix of `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)


# -- segments -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Segment:
    """Text of one kind, without its markers. Between two tool calls there is a segment of text, which may be empty."""

    kind: SegmentKind
    text: str


class OutputParser:
    """Splits the text of a turn into segments as it arrives, with mlx-lm's state machine.

    Text that may be the start of a marker is held back.

    Args:
        tokenizer: mlx-lm's `TokenizerWrapper`.
        prompt: token ids of the prompt; some templates open the thinking at its end.
        opening: text at the end of the prompt that is the beginning of the answer.
        raw: the turn is one text; markers are part of it.
    """

    def __init__(self, tokenizer: Any, prompt: list[int], opening: str = "", *, raw: bool = False) -> None:
        if raw:
            self._state = TextStateMachine().make_state()
        else:
            thinks = not opening and opens_thinking(tokenizer, prompt)
            initial = "reasoning" if thinks else tokenizer.response_initial_state or "normal"
            self._state = make_text_state_machine(tokenizer).make_state(initial)
        self._opening = opening

    @property
    def kind(self) -> SegmentKind:
        """The kind of the next text."""
        return _KINDS.get(self._state[0], "text")

    def feed(self, text: str) -> tuple[Segment, ...]:
        """Return the segments that the new text completes or extends."""
        self._state, pieces = TextStateMachine.split(self._state, self._opening + text)
        self._opening = ""
        return tuple(Segment(_KINDS.get(state, "text"), piece) for state, piece in pieces)

    def finish(self) -> tuple[Segment, ...]:
        """End the turn; return the text held back."""
        self._state, text, state = TextStateMachine.flush(self._state)
        return (Segment(_KINDS.get(state, "text"), text),) if text else ()


def opens_thinking(tokenizer: Any, prompt: list[int]) -> bool:
    """Return whether the prompt ends with the marker that starts the thinking; elsewhere it is a quotation."""
    if not tokenizer.has_thinking or (start := tokenizer.rfind_think_start(prompt)) < 0:
        return False
    after = prompt[start + len(tokenizer.think_start_tokens) :]
    return not after or not tokenizer.decode(after).strip()


def join_segments(segments: Iterable[Segment]) -> list[Segment]:
    """Merge neighbours of the same kind."""
    merged: list[Segment] = []
    for segment in segments:
        if merged and merged[-1].kind == segment.kind:
            merged[-1] = Segment(segment.kind, merged[-1].text + segment.text)
        else:
            merged.append(segment)
    return merged


# -- messages and tool calls ----------------------------------------------------------------------------------


def assistant_message(tokenizer: Any, segments: Iterable[Segment]) -> dict[str, Any]:
    """Return a turn as a chat message for the next prompt, in the shape that chat templates expect.

    Tool calls that the model's own parser cannot read stay text, with their markers.
    """
    content, reasoning, calls = "", "", []
    for segment in join_segments(segments):
        if segment.kind == "thinking":
            reasoning += segment.text
        elif segment.kind == "text":
            content += segment.text
        elif (parsed := parse_tool_calls(tokenizer, segment.text)) is not None:
            calls += parsed
        else:
            content += f"{tokenizer.tool_call_start}{segment.text}{tokenizer.tool_call_end or ''}"
    message: dict[str, Any] = {
        "role": "assistant",
        "content": content.strip("\n") if reasoning or calls else content,
    }
    if reasoning:
        message["reasoning_content"] = reasoning.strip("\n")
    if calls:
        message["tool_calls"] = [{"type": "function", "function": call} for call in calls]
    return message


def parse_tool_calls(
    tokenizer: Any, text: str, tools: Iterable[dict[str, Any]] | None = None
) -> list[dict[str, Any]] | None:
    """Return the calls {"name": ..., "arguments": {...}} that the model's own parser reads in a tool segment.

    None: it reads none.

    Args:
        tools: definitions as the chat template had them; the arguments get the types of their schemas.
    """
    tools = list(tools or ())
    schemas = {tool["function"]["name"]: tool["function"].get("parameters") or {} for tool in tools}
    calls = _read_calls(tokenizer, text, [_as_parsers_read(tool) for tool in tools] or None)
    if tools and calls is None:  # some parsers fail on a value of another type than the schema's
        calls = _read_calls(tokenizer, text, None)
    if not calls or not all(map(_is_call, calls)):
        return None
    typed = []
    for call in calls:
        schema = schemas.get(call["name"], {})
        arguments = _typed(call["arguments"], schema, schema)
        if '"null"' not in text:  # null without quotes, which the parser took for text
            arguments = _with_nulls(arguments, schema)
        typed.append(call | {"arguments": arguments})
    return typed


def _read_calls(tokenizer: Any, text: str, tools: list[dict[str, Any]] | None) -> list[Any] | None:
    """The calls that the model's own parser reads; None: it fails."""
    try:
        parsed = tokenizer.tool_parser(text, tools)
        read = parse_json(json.dumps(parsed if isinstance(parsed, list) else [parsed]))  # some read Python's literals
    except Exception:  # each parser has its own way to fail on what a model makes up
        return None
    return read if isinstance(read, list) else None


def _as_parsers_read(tool: dict[str, Any]) -> dict[str, Any]:
    """A tool for mlx-lm's parsers, which take a property for text only where its schema is {"type": "string"}."""
    function = tool["function"]
    schema = function.get("parameters")
    properties = schema.get("properties") if isinstance(schema, dict) else None
    if not isinstance(properties, dict):
        return tool
    simple = {name: _as_text(prop, schema) for name, prop in properties.items()}
    return tool | {"function": function | {"parameters": schema | {"properties": simple}}}


def _as_text(schema: Any, root: Any) -> dict[str, Any]:
    """The schema of text, where a schema permits a string; of objects and lists the parsers find out by themselves."""
    if not isinstance(schema, dict):
        return {}
    types = types_of(schema, root)
    return {"type": "string"} if "string" in types and not types & {"object", "array"} else schema


def _is_call(call: Any) -> bool:
    return isinstance(call, dict) and isinstance(call.get("name"), str) and "arguments" in call


def _with_nulls(arguments: Any, schema: Any) -> Any:
    """The arguments with None for the text "null", where the schema permits both."""
    properties = schema.get("properties") if isinstance(schema, dict) else None
    if not isinstance(arguments, dict) or not isinstance(properties, dict):
        return arguments
    nullable = {name for name, prop in properties.items() if "null" in types_of(prop, schema)}
    return {name: None if value == "null" and name in nullable else value for name, value in arguments.items()}


def _typed(value: Any, schema: Any, root: Any) -> Any:
    """The value in the type of its schema, where the model wrote it as a string and the schema permits none."""
    if not isinstance(schema, dict):
        return value
    schema = target_of(schema, root)
    types = types_of(schema, root)
    if isinstance(value, str) and "string" not in types:
        try:
            read = parse_json(value)
        except ValueError:
            return value
        value = read if types & types_of_value(read) else value
    properties = schema.get("properties")
    if isinstance(value, dict) and isinstance(properties, dict):
        return {name: _typed(item, properties.get(name), root) for name, item in value.items()}
    if isinstance(value, list):
        return [_typed(item, schema.get("items"), root) for item in value]
    return value
