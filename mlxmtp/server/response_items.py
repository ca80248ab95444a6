"""The objects of the Responses API: a response and its items."""

from __future__ import annotations

import base64
from typing import Any

from mlxmtp.server.problems import ApiError
from mlxmtp.server.turn import Outcome, ToolCall
from mlxmtp.server.wire import ResponseContext, timings

Item = dict[str, Any]
SEALED = "mlxmtp:"
"""Codex echoes only what is called encrypted: there reasoning goes in the clear, behind this mark."""


def response(context: ResponseContext, id: str, items: list[Item], outcome: Outcome | None = None) -> Item:
    """The response object; without an outcome it is in progress."""
    done = outcome.done if outcome else None
    cut = done is not None and done.reason == "length"
    answer: dict[str, Any] = {
        "id": id,
        "object": "response",
        "created_at": context.created,
        "status": "in_progress" if done is None else "incomplete" if cut else "completed",
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "model": context.model,
        "output": items,
        "parallel_tool_calls": context.request.parallel,
        "store": False,
        "temperature": context.request.settings.temperature,
        "top_p": context.request.settings.top_p,
        "tools": [{"type": "function", "strict": False, **tool["function"]} for tool in context.request.tools],
        "usage": None,
        **context.request.echo,
    }
    if done and done.stats:
        used = _usage(context, done.stats.tokens, done.stats.reused_tokens)
        answer |= {"usage": used, "timings": timings(done.stats)}
    return answer


def message_item(id: str, text: str, status: str = "completed") -> dict[str, Any]:
    """A message: "in_progress", where its text has not begun, "completed", or "incomplete" where the limit cut it."""
    content = [] if status == "in_progress" else [text_part(text)]
    return {"id": id, "type": "message", "role": "assistant", "status": status, "content": content}


def text_part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def reasoning_item(id: str, text: str, *, complete: bool = True) -> dict[str, Any]:
    item: dict[str, Any] = {"id": id, "type": "reasoning", "summary": []}
    if complete:
        item |= {"content": [{"type": "reasoning_text", "text": text}], "encrypted_content": sealed(text)}
    return item


def sealed(text: str) -> str:
    return SEALED + base64.b64encode(text.encode(errors="replace")).decode()


def unsealed(content: str | None) -> str:
    """What `sealed` was given; nothing of what others sealed."""
    if not content or not content.startswith(SEALED):
        return ""
    try:
        return base64.b64decode(content.removeprefix(SEALED), validate=True).decode(errors="replace")
    except ValueError:
        return ""


def call_item(context: ResponseContext, id: str, call: ToolCall, status: str = "completed") -> dict[str, Any]:
    """A call; of a tool from a namespace, Codex wants both names apart."""
    arguments = call.arguments if status == "completed" else ""
    about = {"call_id": call.id, "name": call.name, "arguments": arguments}
    if call.name in context.request.namespaces:
        about["namespace"], about["name"] = context.request.namespaces[call.name]
    return {"id": id, "type": "function_call", "status": status, **about}


def _usage(context: ResponseContext, said: int, reused: int) -> dict[str, Any]:
    return {
        "input_tokens": context.prompt_tokens,
        "input_tokens_details": {"cached_tokens": reused},
        "output_tokens": said,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": context.prompt_tokens + said,
    }


def failed(context: ResponseContext, id: str, problem: ApiError) -> dict[str, Any]:
    """The response of a turn that broke off."""
    about = {"code": problem.code, "message": str(problem)}
    return response(context, id, []) | {"status": "failed", "error": about}
