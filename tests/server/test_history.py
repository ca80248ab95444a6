"""What a client sends of the conversation so far never ends it; what the user sends now is refused if it is no text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from anthropic.types.beta import BetaContentBlockParam
from openai.types.chat import ChatCompletionContentPartParam
from openai.types.responses import ResponseInputItemParam

from mlxmtp.checkpoints.checkpoint import DEMO
from mlxmtp.engine.loading import load_tokenizer
from mlxmtp.server.body import MAX_NESTING
from mlxmtp.server.errors import ApiError
from tests.scripted_engine import asynchronous
from tests.server.scripted import (
    CHAT,
    MESSAGES,
    RESPONSES,
    LocalServer,
    parse,
    parse_error,
    serving,
    turn,
)
from tests.server.sdk_samples import DATA, samples

Body = dict[str, Any]

HI, AGAIN = {"role": "user", "content": "hi"}, {"role": "user", "content": "again?"}
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": DATA}}
IMAGE_URL = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{DATA}"}}
INPUT_IMAGE = {"type": "input_image", "image_url": f"data:image/png;base64,{DATA}"}
TURNS = {CHAT: "messages", MESSAGES: "messages", RESPONSES: "input"}
STRICT_TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}:{{ m.content }}"
    "{% for c in m.tool_calls or [] %} {{ c.function.name }}("
    "{% for name, value in c.function.arguments|items %}{{ name }}={{ value }}{% endfor %}){% endfor %}]{% endfor %}"
)
"""Takes arguments as an object only."""
LAST_SYSTEM_TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' and not loop.first %}{{ raise_exception('system first') }}"
    "{% endif %}[{{ m.role }}:{{ m.content }}]{% endfor %}"
)
SILENT_TEMPLATE = (
    "{% for m in messages %}{% if m.role != 'system' %}[{{ m.role }}:{{ m.content }}]{% endif %}{% endfor %}"
)


def with_template(template: str) -> Any:
    tokens = load_tokenizer(DEMO)
    tokens._tokenizer.chat_template = template
    return tokens


def contents(path: str, history: list[Body], **more: Any) -> list[tuple[str, str]]:
    """Role and content of the chat messages of a body."""
    messages: Any = parse(path, **{TURNS[path]: history}, **more).messages
    return [(message["role"], message["content"]) for message in messages]


async def asked(served: LocalServer, path: str, history: list[Body]) -> str:
    """The prompt of a conversation with one more question."""
    body = {TURNS[path]: [*history, AGAIN], "max_tokens": 9}
    response = await served.post(path, body)
    assert response.status_code == 200, (response.text, history)
    return served.prompt


@asynchronous
async def test_every_block_and_item_of_the_sdks_may_be_in_the_history() -> None:
    """Something stands in the prompt for it, and no encoded data."""
    blocks, items = samples(BetaContentBlockParam), samples(ResponseInputItemParam)
    parts = samples(ChatCompletionContentPartParam)
    assert (len(blocks) > 20, len(items) > 25, len(parts) > 3) == (True, True, True)
    call = {"type": "tool_use", "id": "t", "name": "look", "input": {}}
    histories: list[tuple[str, str, list[Body]]] = []
    for name, block in blocks.items():
        result = {"type": "tool_result", "tool_use_id": "t", "content": [block]}
        histories += [
            (MESSAGES, name, [HI, {"role": "assistant", "content": [block, {"type": "text", "text": "so"}]}]),
            (MESSAGES, name, [{"role": "user", "content": [block]}, {"role": "assistant", "content": "so"}]),
            (MESSAGES, name, [HI, {"role": "assistant", "content": [call]}, {"role": "user", "content": [result]}]),
            (MESSAGES, name, [HI, {"role": "system", "content": [block]}, {"role": "assistant", "content": "so"}]),
        ]
    histories += [(RESPONSES, name, [HI, item]) for name, item in items.items() if name != "item_reference"]
    for name, part in parts.items():
        histories += [
            (CHAT, name, [HI, {"role": "assistant", "content": [part]}]),
            (CHAT, name, [{"role": "user", "content": [part]}, {"role": "assistant", "content": "so"}]),
            (CHAT, name, [HI, {"role": "tool", "tool_call_id": "t", "content": [part]}]),
        ]
    async with serving(turn("fine"), tokens=with_template(STRICT_TEMPLATE), context=20_000) as served:
        for path, name, history in histories:
            prompt = await asked(served, path, history)
            assert prompt.endswith("[user:again?]"), (path, name, prompt)
            assert DATA[:20] not in prompt, (path, name)
            assert prompt.removesuffix("[user:again?]") not in ("", "[user:hi]"), (path, name)


def test_what_the_user_sends_now_is_refused() -> None:
    """Also where a system message follows. Not in a tool's result, and not in what a client puts after one."""
    answered = {"role": "assistant", "content": "so"}
    late = {"role": "system", "content": "A file was changed."}
    called: dict[str, list[Body]] = {
        CHAT: [
            {"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "{}"}}]},
            {"role": "tool", "tool_call_id": "c", "content": "see below"},
        ],
        MESSAGES: [
            {"role": "assistant", "content": [{"type": "tool_use", "id": "c", "name": "f", "input": {}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": "see below"}]},
        ],
        RESPONSES: [
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": "see below"},
        ],
    }
    for path, image in ((CHAT, IMAGE_URL), (MESSAGES, IMAGE), (RESPONSES, INPUT_IMAGE)):
        shown = {"role": "user", "content": [image]}
        line = f"[{image['type']} left out: this model reads text only]"
        for history, index in (([shown], 0), ([HI, answered, shown], 2), ([HI, shown, late], 1)):
            with pytest.raises(ApiError, match="this server reads text only") as refusal:
                parse(path, **{TURNS[path]: history})
            assert refusal.value.param == f"{TURNS[path]}[{index}].content[0]", (path, history)
        assert contents(path, [shown, answered, HI])[0] == ("user", line), path
        assert contents(path, [HI, *called[path], shown])[-2:] == [("tool", "see below"), ("user", line)], path
    with pytest.raises(ApiError, match="is of type None"):
        parse(CHAT, messages=[{"role": "user", "content": [{"image_url": IMAGE_URL["image_url"]}]}])
    result = called[MESSAGES][1]["content"][0]
    beside = {"role": "user", "content": [result, IMAGE, {"type": "text", "text": "Go on."}]}
    expected = [("tool", "see below"), ("user", "[image left out: this model reads text only]\nGo on.")]
    assert contents(MESSAGES, [HI, called[MESSAGES][0], beside])[-2:] == expected


@asynchronous
async def test_a_refused_image_does_not_end_the_session() -> None:
    async with serving(turn("fine")) as served:
        for path, image in ((CHAT, IMAGE_URL), (MESSAGES, IMAGE), (RESPONSES, INPUT_IMAGE)):
            history = [{"role": "user", "content": [image]}]
            refusal = await served.post(path, {TURNS[path]: history, "max_tokens": 9})
            assert refusal.status_code == 400
            assert "reads text only" in parse_error(path, refusal.json())["message"]
            assert "left out" in await asked(served, path, history), path


def test_the_lines_in_place_of_blocks() -> None:
    document = {"type": "document", "title": "notes.txt", "source": {"type": "text", "data": "Buy milk."}}
    nested = {"type": "document", "source": {"type": "content", "content": [{"type": "text", "text": "Part."}, IMAGE]}}
    pdf = {"type": "document", "title": "a.pdf", "source": {"type": "base64", "data": DATA}}
    found = {"type": "search_result", "source": "http://a", "title": "A", "content": [{"type": "text", "text": "B"}]}
    assert contents(
        MESSAGES, [{"role": "user", "content": [document, nested, found, {"type": "text", "text": "?"}]}]
    ) == [("user", "notes.txt\nBuy milk.\nPart.\n[image left out: this model reads text only]\nA\nhttp://a\nB\n?")]
    search = {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {"query": "mlx"}}
    hit = {"type": "web_search_result", "url": "http://a", "title": "A", "encrypted_content": DATA, "page_age": None}
    results = {"type": "web_search_tool_result", "tool_use_id": "s", "content": [hit]}
    answer = {"role": "assistant", "content": [search, results, {"type": "text", "text": "So."}]}
    summary = {"type": "compaction", "content": "They talked of milk.", "encrypted_content": DATA}
    history = [{"role": "user", "content": [pdf]}, answer, {"role": "user", "content": [summary]}, answer, HI]
    said = (
        '[server_tool_use: {"name": "web_search", "input": {"query": "mlx"}}]\n'
        '[web_search_tool_result: {"content": [{"url": "http://a", "title": "A"}]}]\nSo.'
    )
    assert contents(MESSAGES, history)[:3] == [
        ("user", '[document "a.pdf" left out: this model reads text only]'),
        ("assistant", said),
        ("user", "They talked of milk."),
    ]
    web = {"type": "web_search_call", "id": "w", "status": "completed", "action": {"type": "search", "query": "mlx"}}
    picture = {"type": "image_generation_call", "id": "i", "result": DATA}
    text = {"type": "message", "role": "assistant", "content": "So."}
    assert contents(RESPONSES, [HI, web, picture, text, HI])[1:3] == [
        ("assistant", '[web_search_call: {"action": {"query": "mlx"}}]\n[image_generation_call: not readable here]'),
        ("assistant", "So."),
    ]


def test_calls_that_another_server_had_the_client_run() -> None:
    shell = {"type": "local_shell_call", "call_id": "c", "action": {"type": "exec", "command": ["ls", "-a"]}}
    output = {"type": "shell_call_output", "call_id": "c", "output": [{"stdout": "a.py", "outcome": {"type": "exit"}}]}
    messages: Any = parse(RESPONSES, input=[HI, shell, output, HI]).messages
    assert messages[1]["tool_calls"][0]["function"] == {
        "name": "local_shell",
        "arguments": {"action": {"command": ["ls", "-a"]}},
    }
    result = '{"stdout": "a.py"}'
    assert messages[2] == {"role": "tool", "content": result, "tool_call_id": "c"}
    screen = {"type": "computer_call_output", "call_id": "c", "output": {"type": "computer_screenshot", "data": DATA}}
    line = "[computer_screenshot left out: this model reads text only]"
    assert contents(RESPONSES, [HI, shell, screen, HI])[2] == ("tool", line)


def test_results_of_tools_that_are_json() -> None:
    for value, text in (
        ({"ok": True, "id": 7}, '{"ok": true, "id": 7}'),
        (7, "7"),
        ([1, None, "a"], "1a"),
        ({}, "{}"),
    ):
        output = {"type": "function_call_output", "call_id": "c", "output": value}
        result = {"type": "tool_result", "tool_use_id": "c", "content": value}
        for path, item in (
            (CHAT, {"role": "tool", "tool_call_id": "c", "content": value}),
            (MESSAGES, {"role": "user", "content": [result]}),
            (RESPONSES, output),
        ):
            assert contents(path, [HI, item]) == [("user", "hi"), ("tool", text)], (path, value)


ARGUMENTS: list[tuple[Any, Any]] = [
    ('{"path": "a.py"}', {"path": "a.py"}),
    ("", {}),
    ("null", {}),
    (None, {}),
    ('{"path": "a.py", "text": "x', {"arguments": '{"path": "a.py", "text": "x'}),
    ('"ls"', {"arguments": "ls"}),
    ("[1]", {"arguments": [1]}),
    ("7", {"arguments": 7}),
    ("ls -a", {"arguments": "ls -a"}),
    ("[" * 5000, {"arguments": "[" * 5000}),
    ('{"a":' * MAX_NESTING + "1" + "}" * MAX_NESTING, {"arguments": '{"a":' * MAX_NESTING + "1" + "}" * MAX_NESTING}),
]


@asynchronous
async def test_arguments_of_earlier_calls_become_an_object() -> None:
    async with serving(turn("fine"), tokens=with_template(STRICT_TEMPLATE), context=20_000) as served:
        for given, expected in ARGUMENTS:
            function = {"name": "f", "arguments": given}
            use = {"type": "tool_use", "id": "c", "name": "f", "input": given}
            call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": given}
            for path, answer in (
                (CHAT, {"role": "assistant", "tool_calls": [{"id": "c", "type": "function", "function": function}]}),
                (CHAT, {"role": "assistant", "content": None, "function_call": function}),
                (MESSAGES, {"role": "assistant", "content": [use]}),
                (RESPONSES, call),
            ):
                messages: Any = parse(path, **{TURNS[path]: [HI, answer]}).messages
                assert messages[1]["tool_calls"][0]["function"] == {"name": "f", "arguments": expected}, (path, given)
                written = "".join(f"{name}={value}" for name, value in expected.items())
                assert await asked(served, path, [HI, answer]) == f"[user:hi][assistant: f({written})][user:again?]"


def test_odd_shapes_are_read_as_they_can_be() -> None:
    """Other servers made the history. What cannot be read is left out, with a note where a tool is missing."""
    user, assistant = {"role": "user"}, {"role": "assistant"}
    thought = {"type": "thinking", "thinking": ["a", "b"]}
    failed = {"type": "tool_result", "tool_use_id": "t", "is_error": "true", "content": "no"}
    sealed = {"type": "reasoning", "encrypted_content": ["x"], "summary": [{"type": "summary_text", "text": "Hm."}]}
    assistants = {"type": "text", "text": {"value": "So.", "annotations": []}}
    for path, item, expected in (
        (MESSAGES, user | {"content": ["a", "b"]}, {"role": "user", "content": "a\n\nb"}),
        (MESSAGES, assistant | {"content": ["a", None, "b"]}, {"role": "assistant", "content": "ab"}),
        (MESSAGES, assistant | {"content": [thought]}, {"content": "", "reasoning_content": '["a", "b"]'}),
        (MESSAGES, user | {"content": [failed]}, {"role": "tool", "content": "Error: no"}),
        (MESSAGES, user | {"content": [failed | {"is_error": "false"}]}, {"role": "tool", "content": "no"}),
        (CHAT, assistant | {"content": [assistants]}, {"content": "So."}),
        (CHAT, assistant | {"content": "So.", "tool_calls": [None]}, {"role": "assistant", "content": "So."}),
        (CHAT, assistant | {"content": "So.", "tool_calls": "none"}, {"content": 'So.\n[text: {"text": "none"}]'}),
        (RESPONSES, sealed, {"role": "assistant", "content": "", "reasoning_content": "Hm."}),
    ):
        message: Any = parse(path, **{TURNS[path]: [HI, item, HI]}).messages[1]  # type: ignore[index]
        assert message | expected == message, (path, item)
    odd = assistant | {"tool_calls": [{"id": "c", "function": "look"}]}
    messages: Any = parse(CHAT, messages=[HI, odd, HI]).messages
    assert messages[1]["tool_calls"][0]["function"] == {"name": "look", "arguments": {}}
    for path, item, where in (
        (RESPONSES, {"type": "additional_tools", "tools": [{"type": "function"}]}, "input[1].tools[0].name"),
        (MESSAGES, {"role": "system", "content": [{"type": "tool_addition", "tool": {"definition": {"a": 1}}}]}, ""),
    ):
        request = parse(path, **{TURNS[path]: [HI, item, HI]})
        assert any(line.startswith(f"{where}") and "name" in line for line in request.dropped), (path, request.dropped)


def test_any_value_may_stand_in_the_fields_of_the_history() -> None:
    """But for roles: without one it is not known whose words they are."""
    values: tuple[Any, ...] = (None, True, 7, "x", ["x"], [None, 7, {}], {"value": "x"}, {"type": "x"})
    call: Body = {"role": "assistant", "content": "so", "tool_calls": [{"id": "c", "function": {"name": "f"}}]}
    call |= {"reasoning_content": "hm", "reasoning": "hm", "function_call": {"name": "f"}, "images": [DATA]}
    custom = {"role": "assistant", "tool_calls": [{"id": "c", "type": "custom", "custom": {"name": "f", "input": "x"}}]}
    result = {"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "a"}]}
    histories: list[tuple[str, Body]] = [(CHAT, item) for item in (call, custom, result)]
    for block in samples(BetaContentBlockParam).values():
        histories += [(MESSAGES, {"role": role, "content": [block]}) for role in ("user", "assistant", "system")]
    items = samples(ResponseInputItemParam).items()
    histories += [(RESPONSES, dict(item)) for name, item in items if name != "item_reference"]
    for path, item in histories:
        odd = [one for one in changed(item, values) if one.get("role") == item.get("role")]
        odd = [
            one for one in odd if "type" not in item or one["type"] is not None
        ]  # an item without a type needs a role
        assert len(odd) > len(values), item
        parse(path, **{TURNS[path]: [HI, *odd, {"role": "assistant", "content": "so"}, HI]})


def changed(value: Any, values: tuple[Any, ...]) -> Iterator[Any]:
    """The JSON value with each of its fields and elements, one at a time, replaced by each of `values`."""
    fields = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in fields:
        for other in (*values, *changed(inner, values)):
            copy = value.copy()
            copy[key] = other
            yield copy


def test_pictures_beside_the_content() -> None:
    """Ollama has a message's pictures in a field of their own. They are treated as those in the content."""
    shown = {"role": "user", "content": "What is it?", "images": [DATA, DATA]}
    line = "[image left out: this model reads text only]"
    assert contents(CHAT, [shown, {"role": "assistant", "content": "so"}, HI])[0][1] == f"What is it?\n{line}\n{line}"
    with pytest.raises(ApiError, match="this server reads text only") as refusal:
        parse(CHAT, messages=[HI, {"role": "assistant", "content": "so"}, shown])
    assert refusal.value.param == "messages[2].images[0]"
    answered = {"role": "assistant", "content": None, "audio": {"id": "a", "data": DATA}}
    assert contents(CHAT, [HI, answered, HI])[1][1] == "[audio left out: this model reads text only]"


def test_calls_of_other_kinds_become_text() -> None:
    odd = {"id": "c", "type": "remote", "remote": {"name": "f"}}
    assert contents(CHAT, [HI, {"role": "assistant", "content": "So:", "tool_calls": [odd]}, HI])[1] == (
        "assistant",
        'So:\n[remote: {"remote": {"name": "f"}}]',
    )


@asynchronous
async def test_a_later_system_message_stays_where_it_stands() -> None:
    """The prompt begins as that of the turn before, whatever the template makes of such a message."""
    late = {"role": "system", "content": "A file was changed."}
    answer = {"role": "assistant", "content": "So."}
    joined = "[user:hi\n\nA file was changed.][assistant:So.][user:A file was changed.\n\nagain?]"
    for template, later in (
        (
            STRICT_TEMPLATE,
            "[user:hi][system:A file was changed.][assistant:So.][system:A file was changed.][user:again?]",
        ),
        (LAST_SYSTEM_TEMPLATE, joined),
        (SILENT_TEMPLATE, joined),
    ):
        async with serving(turn("fine"), tokens=with_template(template)) as served:
            for path in (CHAT, MESSAGES, RESPONSES):
                assert await asked(served, path, [HI, late, answer, late]) == later, (template, path)
    async with serving(turn("fine"), tokens=with_template(LAST_SYSTEM_TEMPLATE)) as served:
        tool = {"role": "tool", "tool_call_id": "c", "content": "done"}
        prompt = await asked(served, CHAT, [late, HI, answer, tool, late, late])
        changed = "A file was changed."
        assert prompt == (
            f"[system:{changed}][user:hi][assistant:So.][tool:done\n\n{changed}\n\n{changed}][user:again?]"
        )


def test_roles_and_references_that_are_not_known_are_refused() -> None:
    for path, history, param in (
        (CHAT, [{"role": "wizard", "content": "hi"}], "messages[0].role"),
        (RESPONSES, [HI, {"type": "item_reference", "id": "rs"}], "input[1].type"),
    ):
        with pytest.raises(ApiError, match="expected") as refusal:
            parse(path, **{TURNS[path]: history})
        assert refusal.value.param == param


@asynchronous
async def test_half_a_surrogate_pair_becomes_a_character() -> None:
    """Clients cut a tool's output in the middle of an emoji, and send it again with each request."""
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": r'{"a": "cut \ud83d"}'}}
    asked = [
        {"role": "user", "content": "go"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "seen \ud83d"},
        {"role": "user", "content": "so \udfff"},
    ]
    async with serving(turn("Fine.")) as served:
        response = await served.http.post(CHAT, content=json.dumps({"messages": asked}).encode())
        assert response.status_code == 200, response.text
        assert all(text in served.prompt for text in ("cut \ufffd", "seen \ufffd", "so \ufffd"))
