"""A request in no protocol's shape: what the adapters read, and what the core answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mlxmtp.engine.request import GenerationOptions
from mlxmtp.server.fields import Fields
from mlxmtp.server.problems import ApiError

Message = dict[str, Any]
Neutral = Mapping[str, tuple[Any, ...]]
UNHEARD: Neutral = {
    **dict.fromkeys(("typical_p", "tfs_z", "n", "best_of"), (1,)),
    **dict.fromkeys(("top_a", "xtc_probability", "dry_multiplier", "dynatemp_range", "mirostat", "min_tokens"), (0,)),
    "top_n_sigma": (0, -1),
    **dict.fromkeys(("use_beam_search", "ignore_eos", "echo", "continue_final_message"), (False,)),
    "add_generation_prompt": (True,),
    **dict.fromkeys(("grammar", "guided_regex", "guided_grammar"), ("",)),
    **dict.fromkeys(("guided_choice", "stop_token_ids", "bad_words"), ([],)),
    **dict.fromkeys(("guided_json", "structured_outputs", "prompt_logprobs"), ()),
}
"""What no protocol here honours, of OpenAI's, vLLM's and llama.cpp's fields, and the values that ask for nothing: to
drop it in silence would change what comes out."""
HARMLESS = (
    *("model", "user", "metadata", "client_metadata", "store", "service_tier", "safety_identifier", "stream_options"),
    *("prompt_cache_key", "prompt_cache_retention", "cache_prompt", "prediction", "drop_params"),
)
"""Fields that have no part in an answer's text: the log need not say that they are not read."""
LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens", "n_predict")
"""The names of an answer's limit; clients send each of them to each protocol."""
LARGEST = 1e6
"""Of temperatures and factors; nothing changes between here and infinity."""


@dataclass(frozen=True)
class Request:
    """One turn that is asked for.

    Args:
        messages: as chat templates take them, at most one system message, in front; or a text, or token ids.
        tools: function tools as chat templates take them, those that may not be called too: the prompt is the same.
        allowed: the names of those that may be called.
        choice: "auto"; "required": at least one call; else the name of the tool to call.
        parallel: more than one call a turn may come.
        settings: how the turn is generated.
        dropped: what was left out, for the log.
        echo: what the answer tells again of the body, in its protocol's shape. place: the body's field of the messages.
        namespaces: of tools that came in one, by the names that they have here: its name, and theirs there.
    """

    messages: list[Message] | str | list[int]
    settings: GenerationOptions
    tools: list[dict[str, Any]] = field(default_factory=list)
    allowed: tuple[str, ...] = ()
    choice: str = "auto"
    parallel: bool = True
    stream: bool = False
    usage: bool = False
    client: str = ""
    dropped: tuple[str, ...] = ()
    echo: Mapping[str, Any] = field(default_factory=dict)
    place: str = "messages"
    namespaces: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def raw(self) -> bool:
        """Whether the prompt is read as it is, without a chat template, and the answer given as it is."""
        return isinstance(self.messages, str) or isinstance(self.messages[0], int)


def refuse_unheard(body: Fields, neutral: Neutral) -> None:
    """Refuse what is not honoured: of any protocol, and of this one.

    Args:
        neutral: of each name, the values that ask for nothing.
    """
    for name, values in {**UNHEARD, **neutral}.items():
        body.refuse_unless(name, *values)


def limit(body: Fields) -> int | None:
    """The most tokens of the answer, the least of several limits; 0: no limit; None: nothing is said of it."""
    given = [0 if body.any(name) == -1 else body.whole(name, 1) for name in LIMITS if name in body]
    return min((one for one in given if one), default=0) if given else None


def settings(
    body: Fields, defaults: GenerationOptions, max_tokens: int | None = None, **more: Any
) -> GenerationOptions:
    """The sampling fields that all protocols share.

    Args:
        defaults: for what the body leaves out. max_tokens: where it has no limit. more: further fields.
    """
    wanted = limit(body)

    def or_default(name: str, value: Any) -> Any:
        return getattr(defaults, name) if value is None else value

    top_k = body.whole("top_k", -1)
    return GenerationOptions(
        temperature=or_default("temperature", _temperature(body)),
        top_p=or_default("top_p", _top_p(body)),
        top_k=or_default("top_k", None if top_k is None else max(top_k, 0)),
        min_p=or_default("min_p", body.number("min_p", 0, 1)),
        seed=or_default("seed", _seed(body)),
        frequency_penalty=or_default("frequency_penalty", body.number("frequency_penalty", -2, 2)),
        presence_penalty=or_default("presence_penalty", body.number("presence_penalty", -2, 2)),
        repetition_penalty=or_default("repetition_penalty", _repetition(body)),
        logit_bias=_logit_bias(body),
        depth=defaults.depth,
        max_tokens=max_tokens if wanted is None else wanted or None,
        stop=[*body.texts("stop"), *body.texts("stop_sequences")],
        **more,
    )


def function_tool(name: str, description: Any, parameters: Any) -> dict[str, Any]:
    """A tool in the shape that chat templates take."""
    function = {"name": name, "description": description or "", "parameters": parameters or {"type": "object"}}
    return {"type": "function", "function": function}


def schema_of(wanted: Fields | None) -> dict[str, Any] | None:
    """The JSON schema of a `response_format`, of Chat Completions or Responses; None where text is wanted."""
    kind = wanted.text("type") if wanted else "text"
    if not wanted or kind in ("text", None):
        return None
    if kind == "json_object":
        return {"type": "object"}
    if kind != "json_schema":
        wanted.refuse("type", "text, json_object or json_schema")
    holder = wanted.object("json_schema") or wanted
    schema = holder.any("schema")
    if not isinstance(schema, Mapping):
        holder.refuse("schema", "a JSON schema")
    return dict(schema)


def check_schema_and_tools(schema: Any, allowed: tuple[str, ...], param: str) -> None:
    """One grammar cannot hold an answer and calls at once."""
    if schema and allowed:
        raise ApiError(
            f"{param} asks for JSON while tools may be called; give it without tools, or with tool_choice none",
            code="unsupported_parameter",
            param=param,
        )


def _temperature(body: Fields) -> float | None:
    value = body.number("temperature", 0, LARGEST)
    return 0.0 if value is not None and value < 1e-6 else value


def _top_p(body: Fields) -> float | None:
    value = body.number("top_p", 0, 1)
    return 1e-9 if value == 0 else value  # 0 is meant as: the most likely one


def _seed(body: Fields) -> int | None:
    value = body.any("seed")
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        body.refuse("seed", "a whole number")
    return None if value is None else int(value) % 2**64


def _repetition(body: Fields) -> float | None:
    """The penalty, under vLLM's name or llama.cpp's."""
    name = "repetition_penalty" if "repetition_penalty" in body else "repeat_penalty"
    value = body.number(name, 0, LARGEST)
    if value == 0:
        body.refuse(name, "a number above 0; 1 switches it off")
    return value


def _logit_bias(body: Fields) -> dict[int, float]:
    bias = body.any("logit_bias")
    if bias is None:
        return {}
    if not isinstance(bias, Mapping):
        body.refuse("logit_bias", "an object from token ids to numbers")
    biases = {}
    for token, value in bias.items():
        number = isinstance(value, int | float) and not isinstance(value, bool) and -100 <= value <= 100
        if not (isinstance(token, str) and token.isascii() and token.isdigit() and len(token) < 10 and number):
            body.refuse("logit_bias", "token ids with numbers from -100 to 100")
        biases[int(token)] = float(value)
    return biases
