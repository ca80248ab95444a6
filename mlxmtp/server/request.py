"""The request that every protocol's body is parsed into, and the fields that the protocols share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mlxmtp.engine.request import GenerationOptions
from mlxmtp.server.body import JsonObject, whole_number
from mlxmtp.server.history import Message
from mlxmtp.server.thinking import Thinking
from mlxmtp.server.tools import Tool, ToolSet

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
ANY_OBJECT = {"type": "object"}
"""The schema of an answer that is any JSON object."""


@dataclass(frozen=True)
class Request:
    """One turn that a client asks for.

    Args:
        messages: chat messages, of which the first ones are not more than one system message; or a text, or token ids.
        options: how the turn is generated.
        tool_set: the tools of the request. Tools that must not be called stay in the prompt, so that it matches the
            prefix cache.
        callable_tools: names of the tools that may be called.
        tool_choice: "auto"; "required" for at least one call; else the name of the tool to call.
        parallel_tool_calls: whether the turn may have several calls.
        stream: whether the answer is a stream of events.
        include_usage: whether a stream ends with the token counts.
        client: identifies the client in the queue.
        dropped: what the server ignores of the body, for the log.
        echo: fields that the response repeats, in the protocol's shape.
        thinking: what the request says about thinking.
    """

    messages: list[Message] | str | list[int]
    options: GenerationOptions
    tool_set: ToolSet = field(default_factory=ToolSet)
    callable_tools: tuple[str, ...] = ()
    tool_choice: str = "auto"
    parallel_tool_calls: bool = True
    stream: bool = False
    include_usage: bool = False
    client: str = ""
    dropped: tuple[str, ...] = ()
    echo: Mapping[str, Any] = field(default_factory=dict)
    thinking: Thinking = field(default_factory=Thinking)

    @property
    def tools(self) -> list[Tool]:
        """The tools of the prompt."""
        return self.tool_set.tools

    @property
    def callable_functions(self) -> list[Tool]:
        """The tools that may be called, whether the prompt has them or not."""
        return [tool for tool in self.tool_set.callable if tool["function"]["name"] in self.callable_tools]

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
    thinking: Thinking | None = None,
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
        thinking=thinking.enabled if thinking else None,
        thinking_budget=thinking.budget if thinking else None,
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


def answer_schema(body: JsonObject, own: JsonObject | None = None) -> dict[str, Any] | None:
    """The JSON schema that the answer must have; None: text.

    Fields of other servers are read in every protocol: OpenAI's `response_format`, with or without Together's `schema`,
    llama.cpp's `json_schema` and Ollama's `format`.

    Args:
        own: the format of the protocol's own field.

    Raises:
        ApiError: a format is unknown, or two fields ask for different schemas.
    """
    wanted: dict[str, dict[str, Any] | None] = {
        "": _format_schema(own),
        "response_format": _format_schema(body.object("response_format")),
        "json_schema": _schema(body.object("json_schema")),
        "format": _ollama_schema(body),
    }
    schemas = {name: schema for name, schema in wanted.items() if schema is not None}
    exact = {name: schema for name, schema in schemas.items() if schema != ANY_OBJECT}
    for name, schema in exact.items():
        if schema != next(iter(exact.values())):
            body.reject(name, "the same schema as the other fields")
    return next(iter((exact or schemas).values()), None)


def _format_schema(wanted: JsonObject | None) -> dict[str, Any] | None:
    """The schema of a `response_format`; None: text."""
    kind = wanted.string("type") if wanted else None
    if not wanted or kind in ("text", None):
        return None
    if kind not in ("json_object", "json_schema"):
        wanted.reject("type", "text, json_object or json_schema")
    holder = wanted.object("json_schema") or wanted
    if "schema" not in holder:
        return ANY_OBJECT if kind == "json_object" else holder.reject("schema", "a JSON schema")
    return _schema(holder)


def _schema(holder: JsonObject | None) -> dict[str, Any] | None:
    """The schema in the field `schema` of an object, or the object itself where it has no such field."""
    if holder is None or "schema" not in holder:
        return None if holder is None else dict(holder.content)
    schema = holder.get("schema")
    if not isinstance(schema, Mapping):
        holder.reject("schema", "a JSON schema")
    return dict(schema)


def _ollama_schema(body: JsonObject) -> dict[str, Any] | None:
    wanted = body.get("format")
    if wanted in (None, ""):
        return None
    if wanted == "json":
        return ANY_OBJECT
    if not isinstance(wanted, Mapping):
        body.reject("format", "json or a JSON schema")
    return dict(wanted)


def _temperature(body: JsonObject) -> float | None:
    value = body.number("temperature", 0, MAX_TEMPERATURE)
    return 0.0 if value is not None and value < MIN_TEMPERATURE else value


def _top_p(body: JsonObject) -> float | None:
    value = body.number("top_p", 0, 1)
    return GREEDY_TOP_P if value == 0 else value


def _seed(body: JsonObject) -> int | None:
    """The seed; None: none, which clients of llama.cpp and Ollama write as -1."""
    value = whole_number(body.get("seed"))
    if value is None and "seed" in body:
        body.reject("seed", "a whole number")
    return None if value in (None, -1) else value % 2**64


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
