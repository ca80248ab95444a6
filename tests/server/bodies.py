"""Requests as real clients send them, with what the server must make of each.

The fields are those that claude-code 2.1.197, codex 0.169, opencode 1.18, pi, qwen-code 0.15, cline 3 and llm sent over
loopback in November 2026; for the other clients, those of their documentation. All texts were written for these tests.

Each file in bodies/ has one request: client, method, path, headers, body, expects. {"$repeat": [TEXT, N]} stands for
N times TEXT. Fields of `expects`, all optional:

    api           chat, responses, messages, completions, count_tokens, models, probe
    stream        whether the answer is a stream; usage: whether the stream ends with the usage
    roles         roles of the messages for the chat template: one system message in front, later ones where they stand;
                  one message for the reasoning, text and calls of an answer; one for each tool result
    tools         names of the tools for the chat template; dropped_tools: types of the tools that are dropped
    namespaces    tool name -> namespace, which a call must repeat; without it Codex answers "unsupported call"
    max_tokens    limit of the answer, whatever its name in the request
    reasoning     earlier reasoning for the chat template; calls: names of the earlier calls, in order
    tool_results  texts of the tool results; parts are joined without a separator
    json_schema   whether the answer must fit a schema
    present       texts that are in the prompt; absent: texts that are not
    ignored       fields of the body that change nothing
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "bodies"


@dataclass(frozen=True)
class Body:
    """One request, and what the server must make of it. `body` is None for GET and HEAD."""

    name: str
    client: str
    method: str
    path: str
    headers: dict[str, str]
    body: dict[str, Any] | None
    expects: dict[str, Any]

    def __str__(self) -> str:
        return self.name


def expanded(value: Any) -> Any:
    if isinstance(value, dict):
        if value.keys() == {"$repeat"}:
            text, times = value["$repeat"]
            return text * times
        return {key: expanded(one) for key, one in value.items()}
    return [expanded(one) for one in value] if isinstance(value, list) else value


@cache
def texts() -> dict[str, str]:
    return {path.stem: path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.json"))}


def all_bodies(*apis: str) -> list[Body]:
    """All requests, or those of some APIs. Each call makes new ones, so that a test may change them.

    For tests: `@pytest.mark.parametrize("body", all_bodies("chat"), ids=str)`.
    """
    found = [Body(name=name, **expanded(json.loads(text))) for name, text in texts().items()]
    return [body for body in found if not apis or body.expects["api"] in apis]


def body(name: str) -> Body:
    """The request of a file."""
    return Body(name=name, **expanded(json.loads(texts()[name])))
