"""The request that every protocol's body is parsed into, and the fields that the protocols share."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mlxmtp.engine.request import GenerationOptions
from mlxmtp.server.body import JsonObject
from mlxmtp.server.errors import ApiError

Message = dict[str, Any]
"""A chat message, as chat templates take it."""
NeutralValues = Mapping[str, tuple[Any, ...]]
"""Unsupported parameters, each with the values that ask for nothing."""

UNSUPPORTED: NeutralValues = {
    **dict.fromkeys(("typical_p", "tfs_z", "n", "best_of"), (1,)),
    **dict.fromkeys(("top_a", "xtc_probability", "dry_multiplier", "dynatemp_range", "mirostat", "min_tokens"), (0,)),
    "top_n_sigma": (0, -1),
    **dict.fromkeys(("use_beam_search", "ignore_eos", "echo", "continue_final_message"), (False,)),
    "add_generation_prompt": (True,),
    **dict.fromkeys(("grammar", "guided_regex", "guided_grammar"), ("",)),
    **dict.fromkeys(("guided_choice", "stop_token_ids", "bad_words"), ([],)),
    **dict.fromkeys(("guided_json", "structured_outputs", "prompt_logprobs"), ()),
}
"""Parameters of OpenAI, vLLM and llama.cpp that no protocol here supports. They would change the text, so they are
rejected and not ignored."""
NO_EFFECT_ON_TEXT = (
    *("model", "user", "metadata", "client_metadata", "store", "service_tier", "safety_identifier", "stream_options"),
    *("prompt_cache_key", "prompt_cache_retention", "cache_prompt", "prediction", "drop_params"),
)
"""Fields that cannot change the text. They are ignored without a line in the log."""
MAX_TOKENS_FIELDS = ("max_tokens", "max_completion_tokens", "max_output_tokens", "n_predict")
"""Names of the limit of an answer. Every protocol takes all of them, because clients mix them up."""
MAX_TEMPERATURE = 1e6
"""Highest temperature and repetition penalty; the tokens do not change above it."""
MIN_TEMPERATURE = 1e-6
"""A lower temperature is 0: greedy."""
GREEDY_TOP_P = 1e-9
"""Stands for a top_p of 0, which clients send to get the most likely token."""
TEXT_PARTS = ("text", "input_text", "output_text", "refusal", "reasoning_text", "summary_text")
"""Types of content parts that are text."""


@dataclass(frozen=True)
class Request:
    """One turn that a client asks for.

    Args:
        messages: chat messages with at most one system message, which is the first; or a text, or token ids.
        options: how the turn is generated.
        tools: all function tools of the request, as chat templates take them. Tools that must not be called stay in the
            prompt, so that it matches the prefix cache.
        callable_tools: names of the tools that may be called.
        tool_choice: "auto"; "required" for at least one call; else the name of the tool to call.
        parallel_tool_calls: whether the turn may have several calls.
        stream: whether the answer is a stream of events.
        include_usage: whether a stream ends with the token counts.
        client: identifies the client in the queue.
        dropped: what the server ignores of the body, for the log.
        echo: fields that the response repeats, in the protocol's shape.
        namespaces: for tools that came in a namespace: name here -> (namespace, name there).
    """

    messages: list[Message] | str | list[int]
    options: GenerationOptions
    tools: list[dict[str, Any]] = field(default_factory=list)
    callable_tools: tuple[str, ...] = ()
    tool_choice: str = "auto"
    parallel_tool_calls: bool = True
    stream: bool = False
    include_usage: bool = False
    client: str = ""
    dropped: tuple[str, ...] = ()
    echo: Mapping[str, Any] = field(default_factory=dict)
    namespaces: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def raw(self) -> bool:
        """Whether the prompt is used without a chat template, and the generated text returned unparsed."""
        return isinstance(self.messages, str) or isinstance(self.messages[0], int)


def reject_unsupported(body: JsonObject, neutral: NeutralValues) -> None:
    """Reject the parameters that no protocol supports, and those that this one does not.

    Args:
        neutral: the parameters that this protocol does not support.
    """
    for name, values in {**UNSUPPORTED, **neutral}.items():
        body.reject_unless(name, *values)


def unread_fields(body: JsonObject) -> list[str]:
    """Names of the fields that may change the text and were not read, for the log. To be called after all reading."""
    return body.unread(*NO_EFFECT_ON_TEXT)


def generation_options(
    body: JsonObject,
    defaults: GenerationOptions,
    *,
    max_tokens: int | None = None,
    thinking: bool | None = None,
    json_schema: dict[str, Any] | None = None,
    logprobs: int | None = None,
) -> GenerationOptions:
    """The options of a turn, from the sampling fields that all protocols share.

    Args:
        defaults: values of the fields that the body leaves out.
        max_tokens: limit of the answer where the body has none; None: as many as the context has room for.
        thinking, json_schema, logprobs: as the protocol reads them.
    """

    def value_or_default(name: str, value: Any) -> Any:
        return getattr(defaults, name) if value is None else value

    top_k = body.integer("top_k", -1)
    return GenerationOptions(
        temperature=value_or_default("temperature", _temperature(body)),
        top_p=value_or_default("top_p", _top_p(body)),
        top_k=value_or_default("top_k", None if top_k is None else max(top_k, 0)),
        min_p=value_or_default("min_p", body.number("min_p", 0, 1)),
        seed=value_or_default("seed", _seed(body)),
        frequency_penalty=value_or_default("frequency_penalty", body.number("frequency_penalty", -2, 2)),
        presence_penalty=value_or_default("presence_penalty", body.number("presence_penalty", -2, 2)),
        repetition_penalty=value_or_default("repetition_penalty", _repetition_penalty(body)),
        logit_bias=_logit_bias(body),
        depth=defaults.depth,
        max_tokens=max_tokens_limit(body, max_tokens),
        stop=[*body.strings("stop"), *body.strings("stop_sequences")],
        thinking=thinking,
        json_schema=json_schema,
        logprobs=logprobs,
    )


def max_tokens_limit(body: JsonObject, default: int | None = None) -> int | None:
    """The lowest limit of the answer that the body has; None: no limit, which llama.cpp's clients write as -1.

    Args:
        default: the limit where the body has no field for it.
    """
    names = [name for name in MAX_TOKENS_FIELDS if name in body]
    limits = [body.integer(name, 1) for name in names if body.get(name) != -1]
    return min((limit for limit in limits if limit), default=None) if names else default


def response_schema(response_format: JsonObject | None) -> dict[str, Any] | None:
    """The JSON schema of a `response_format` of Chat Completions or Responses; None: text."""
    kind = response_format.string("type") if response_format else "text"
    if not response_format or kind in ("text", None):
        return None
    if kind == "json_object":
        return {"type": "object"}
    if kind != "json_schema":
        response_format.reject("type", "text, json_object or json_schema")
    holder = response_format.object("json_schema") or response_format
    schema = holder.get("schema")
    if not isinstance(schema, Mapping):
        holder.reject("schema", "a JSON schema")
    return dict(schema)


def reasoning_effort(effort: str | None) -> bool | None:
    """Whether an effort asks for thinking; chat templates know only on and off. None: the template's default."""
    return None if effort is None else effort not in ("none", "minimal")


def merge_system_messages(messages: Iterable[Message], field_name: str = "messages") -> list[Message]:
    """The messages with all system messages merged into the first: many chat templates take only one, in front.

    Args:
        field_name: the field of the body that they came in.

    Raises:
        ApiError: there is no message to answer.
    """
    messages = list(messages)
    system = [message["content"] for message in messages if message["role"] == "system" and message["content"]]
    others = [message for message in messages if message["role"] != "system"]
    if not others:
        found = "only system messages" if messages else "none"
        raise ApiError(f"{field_name}: there are {found}; expected at least one of the user", param=field_name)
    return [{"role": "system", "content": "\n\n".join(system)}, *others] if system else others


def text_content(item: JsonObject, name: str = "content") -> str:
    """The text of a content field: a string, or a list of text parts."""
    content = item.get(name)
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        item.reject(name, "a string or a list of parts")
    return "".join(_part_text(part, f"{item.path_of(name)}[{i}]") for i, part in enumerate(content))


def assistant_message(text: str, reasoning: str = "", tool_calls: Iterable[dict[str, Any]] = ()) -> Message:
    """An earlier answer of the conversation."""
    message: Message = {"role": "assistant", "content": text}
    if reasoning:
        message["reasoning_content"] = reasoning
    if tool_calls := list(tool_calls):
        message["tool_calls"] = tool_calls
    return message


def history_tool_call(name: Any, arguments: Any, call_id: Any) -> dict[str, Any]:
    """An earlier tool call of the conversation. Chat templates want its arguments as an object."""
    if isinstance(arguments, str):
        try:
            parsed = json.loads(arguments or "{}")
        except ValueError:
            parsed = None
        arguments = parsed if isinstance(parsed, dict) else arguments
    function = {"name": str(name), "arguments": arguments or {}}
    return {"type": "function", "id": str(call_id or ""), "function": function}


def tool_message(content: str, call_id: Any) -> Message:
    """The result of an earlier tool call."""
    return {"role": "tool", "content": content, "tool_call_id": str(call_id or "")}


def _part_text(part: Any, path: str) -> str:
    if isinstance(part, str):
        return part
    fields = JsonObject(part, path)
    kind = fields.string("type")
    if kind not in TEXT_PARTS:
        message = f"{path} is of type {kind}; this server reads text only"
        raise ApiError(message, code="unsupported_content", param=path)
    return fields.string("refusal" if kind == "refusal" else "text") or ""


def _temperature(body: JsonObject) -> float | None:
    value = body.number("temperature", 0, MAX_TEMPERATURE)
    return 0.0 if value is not None and value < MIN_TEMPERATURE else value


def _top_p(body: JsonObject) -> float | None:
    value = body.number("top_p", 0, 1)
    return GREEDY_TOP_P if value == 0 else value


def _seed(body: JsonObject) -> int | None:
    value = body.get("seed")
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        body.reject("seed", "a whole number")
    return None if value is None else int(value) % 2**64


def _repetition_penalty(body: JsonObject) -> float | None:
    """The penalty, under vLLM's name or llama.cpp's."""
    name = "repetition_penalty" if "repetition_penalty" in body else "repeat_penalty"
    value = body.number(name, 0, MAX_TEMPERATURE)
    if value == 0:
        body.reject(name, "a number above 0; 1 switches it off")
    return value


def _logit_bias(body: JsonObject) -> dict[int, float]:
    bias = body.get("logit_bias")
    if bias is None:
        return {}
    if not isinstance(bias, Mapping):
        body.reject("logit_bias", "an object from token ids to numbers")
    parsed = {}
    for token, value in bias.items():
        is_id = isinstance(token, str) and token.isascii() and token.isdigit() and len(token) < 10
        is_bias = isinstance(value, int | float) and not isinstance(value, bool) and -100 <= value <= 100
        if not (is_id and is_bias):
            body.reject("logit_bias", "token ids with numbers from -100 to 100")
        parsed[int(token)] = float(value)
    return parsed
