"""What each client sends: requests written for these tests, after the shapes that were seen on the wire.

Shapes of claude-code 2.1.197, codex 0.169, opencode 1.18, pi, qwen-code 0.15, cline 3 and llm: recorded on loopback in
November 2026; the others: after ../shared/agents.md. No text in them is a client's own.

One request a file, in bodies/: client, method, path, headers, body, expects. A text {"$repeat": [TEXT, N]} stands for
N times TEXT. `expects`, where a field is left out if it says nothing:

    api           chat, responses, messages, completions, count_tokens, models, probe
    stream        whether the answer is a stream; usage: whether its last chunk shall have the usage
    roles         of the messages that reach the chat template: all system and developer texts are one message in
                  front, what an assistant thought, said and called is one message, each tool result is one
    tools         names of the tools that reach the template; dropped_tools: types of those that do not
    namespaces    tool name -> namespace, which a call of it must name again ("unsupported call" otherwise, says Codex)
    max_tokens    whatever the field's name in the request
    reasoning     texts of earlier thinking that reach the template; calls: names of the earlier calls, in order
    tool_results  their texts; parts are joined with nothing between
    json_schema   whether the answer must fit a schema
    present       texts that are in the prompt; absent: that must not be
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
    """One request, and what a server must make of it. `body`: None for GET and HEAD."""

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
    """All requests, or those to some APIs; anew at each call, so that a test may change them.

    For tests: `@pytest.mark.parametrize("body", all_bodies("chat"), ids=str)`.
    """
    found = [Body(name=name, **expanded(json.loads(text))) for name, text in texts().items()]
    return [body for body in found if not apis or body.expects["api"] in apis]


def body(name: str) -> Body:
    """The request of one file."""
    return Body(name=name, **expanded(json.loads(texts()[name])))
