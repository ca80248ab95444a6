"""OpenAI's Responses (platform.openai.com/docs/api-reference/responses), stateless, as Codex uses it."""

from __future__ import annotations

from typing import Any

from mlxmtp.engine.request import GenerationOptions
from mlxmtp.server import inbound
from mlxmtp.server.chat_completions import effort
from mlxmtp.server.fields import Fields
from mlxmtp.server.request import (
    HARMLESS,
    Message,
    Neutral,
    Request,
    check_schema_and_tools,
    limit,
    refuse_unheard,
    schema_of,
    settings,
)
from mlxmtp.server.response_items import call_item, message_item, reasoning_item, response, unsealed
from mlxmtp.server.responses_stream import ResponseWriter
from mlxmtp.server.turn import Outcome, new_id
from mlxmtp.server.wire import ResponseContext, openai_error

NEUTRAL: Neutral = {
    **dict.fromkeys(("previous_response_id", "conversation", "prompt", "max_tool_calls"), ()),
    **dict.fromkeys(("background", "logprobs"), (False,)),
    "top_logprobs": (0,),
    "response_format": ({"type": "text"},),
}
UNSENT = "message.output_text.logprobs"
"""What `include` may ask for in vain; the rest is of tools that are not here, or comes anyway."""

error = openai_error
writer = ResponseWriter


def read(body: Fields, defaults: GenerationOptions) -> Request:
    """The request of a body."""
    refuse_unheard(body, NEUTRAL)
    if UNSENT in body.texts("include"):
        body.refuse("include", f"a list without {UNSENT}, which this server does not give here")
    cut = ["truncation auto"] if body.any("truncation") == "auto" else []
    offer = inbound.offer(body.objects("tools"), inbound.function_fields)
    messages: list[Message] = []
    if instructions := body.text("instructions"):
        messages.append({"role": "system", "content": instructions})
    asked = body.any("input")
    messages += [{"role": "user", "content": asked}] if isinstance(asked, str) else _input(body.objects("input"), offer)
    allowed, choice = inbound.tool_choice(body, offer.tools)
    text, reasoning = body.object("text"), body.object("reasoning")
    schema = schema_of(text.object("format") if text else None)
    check_schema_and_tools(schema, allowed, "text.format")
    return Request(
        inbound.with_one_system(messages, "input"),
        settings(
            body,
            defaults,
            thinking=effort(reasoning.text("effort") if reasoning else None),
            json_schema=schema,
        ),
        offer.tools,
        allowed,
        choice,
        parallel=body.flag("parallel_tool_calls") is not False,
        stream=bool(body.flag("stream")),
        namespaces=offer.namespaces,
        echo=_echo(body),
        place="input",
        dropped=(*offer.dropped, *cut, *body.unread(*HARMLESS)),  # the last: all that is read has been
    )


def whole(context: ResponseContext, outcome: Outcome) -> dict[str, Any]:
    """The answer as one object."""
    items = []
    if outcome.reasoning:
        items.append(reasoning_item(new_id("rs"), outcome.reasoning))
    if outcome.text or not outcome.calls:
        status = "incomplete" if outcome.done.reason == "length" else "completed"
        items.append(message_item(new_id("msg"), outcome.text, status))
    items += [call_item(context, new_id("fc"), one) for one in outcome.calls]
    return response(context, new_id("resp"), items, outcome)


def _echo(body: Fields) -> dict[str, Any]:
    """What the response object tells again of the request."""
    metadata = body.object("metadata")
    return {
        "instructions": body.text("instructions"),
        "max_output_tokens": limit(body) or None,
        "metadata": body.any("metadata") if metadata else {},
        "tool_choice": body.any("tool_choice") or "auto",
    }


def _input(items: list[Fields], offer: inbound.ToolSet) -> list[Message]:
    """Chat messages of input items: reasoning, text and calls of one answer become one message."""
    flat = {origin: name for name, origin in offer.namespaces.items()}
    messages: list[Message] = []
    for item in items:
        kind = item.text("type") or "message"
        if kind == "reasoning":
            thought = _reasoning(item)
            if _only_thought(messages):
                messages[-1]["reasoning_content"] += thought
            elif thought:
                messages.append(inbound.said("", thought))
        elif kind == "function_call":
            if not messages or messages[-1]["role"] != "assistant":
                messages.append(inbound.said(""))
            name = flat.get((item.text("namespace") or "", item.text("name") or ""), item.any("name"))
            called = inbound.call(name, item.any("arguments"), item.any("call_id"))
            messages[-1].setdefault("tool_calls", []).append(called)
        elif kind == "function_call_output":
            said = inbound.text_of(item, "output")
            messages.append({"role": "tool", "content": said, "tool_call_id": str(item.any("call_id") or "")})
        elif kind == "message":
            message = _message(item)
            if message["role"] == "assistant" and _only_thought(messages):
                messages[-1]["content"] = message["content"]
            else:
                messages.append(message)
        else:
            item.refuse("type", "message, reasoning, function_call or function_call_output")
    return messages


def _only_thought(messages: list[Message]) -> bool:
    """Whether the newest message is an answer of which there is nothing but its reasoning yet."""
    return (
        bool(messages)
        and messages[-1].keys() == {"role", "content", "reasoning_content"}
        and not messages[-1]["content"]
    )


def _message(item: Fields) -> Message:
    role = item.text("role")
    if role not in ("system", "developer", "user", "assistant"):
        item.refuse("role", "system, developer, user or assistant")
    text = inbound.text_of(item)
    if role == "assistant":
        return inbound.said(text)
    return {"role": "user" if role == "user" else "system", "content": text}


def _reasoning(item: Fields) -> str:
    """What was thought: what we sealed, else the item's own text."""
    return unsealed(item.text("encrypted_content")) or inbound.text_of(item) or inbound.text_of(item, "summary")
