"""Templates without a system role, or that want roles to alternate, are given what they take."""

from __future__ import annotations

from typing import Any

import pytest

from mlxmtp import PromptError
from mlxmtp.checkpoints.checkpoint import DEMO
from mlxmtp.engine.loading import load_tokenizer
from mlxmtp.engine.prompt import render

STRICT = """
{%- if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}
{%- for m in messages %}
    {%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}
    {{- '[' + m.role + '] ' + m.content + '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"""


def message(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


SYSTEM, HELLO, BYE, HI = (
    message("system", "Be brief."), message("user", "Hello."), message("user", "Bye."), message("assistant", "Hi."),
)  # fmt: skip


@pytest.fixture(scope="module")
def strict() -> Any:
    tokenizer = load_tokenizer(DEMO, [2])
    tokenizer._tokenizer.chat_template = STRICT
    return tokenizer


def test_the_system_text_begins_the_next_user_message_and_neighbours_are_joined(strict: Any) -> None:
    for messages, text in [
        ([SYSTEM, HELLO], "[user] Be brief.\n\nHello.\n"),
        ([HELLO, BYE], "[user] Hello.\n\nBye.\n"),
        ([SYSTEM, HELLO, HI, HI, BYE], "[user] Be brief.\n\nHello.\n[assistant] Hi.\n\nHi.\n[user] Bye.\n"),
        ([HELLO, HI, SYSTEM, BYE], "[user] Hello.\n[assistant] Hi.\n[user] Be brief.\n\nBye.\n"),
        ([SYSTEM], "[user] Be brief.\n"),
        ([message("developer", "Be brief."), HELLO], "[user] Be brief.\n\nHello.\n"),
        ([HELLO, HI, BYE], "[user] Hello.\n[assistant] Hi.\n[user] Bye.\n"),
    ]:
        rendered = render(strict, messages)
        assert strict.decode(rendered.tokens) == text + "[assistant]", messages
        assert rendered.boundaries or messages in ([SYSTEM], [HELLO, BYE]), messages


KEEPS_SYSTEM = """
{%- set first = 1 if messages[0].role == 'system' else 0 %}
{%- for m in messages[first:] %}
    {%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}
{%- endfor %}
{%- for m in messages %}{{ '[' + m.role + '] ' + m.content + '\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"""
SHORT_IDS = """
{%- for m in messages %}
    {%- for call in m.tool_calls or [] %}
        {%- if call.id | length != 9 %}{{ raise_exception('ids have 9 characters') }}{% endif %}
        {{- '[call ' + call.id + ']' }}
    {%- endfor %}
    {{- '[result ' + m.tool_call_id + ']' if m.role == 'tool' else '[' + m.role + '] ' + m.content }}
{%- endfor %}"""
CALL = {"type": "function", "id": "call_0123456789abcdef", "function": {"name": "f", "arguments": {"n": 1}}}
CALLS: list[dict[str, Any]] = [
    HELLO,
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": CALL["id"], "content": "7"},
]


def test_the_first_system_message_stays_where_the_template_takes_it() -> None:
    tokenizer = load_tokenizer(DEMO, [2])
    tokenizer._tokenizer.chat_template = KEEPS_SYSTEM
    rendered = render(tokenizer, [SYSTEM, HELLO, BYE])
    assert tokenizer.decode(rendered.tokens) == "[system] Be brief.\n[user] Hello.\n\nBye.\n[assistant]"


def test_calls_and_results_become_text(strict: Any) -> None:
    text = strict.decode(render(strict, [SYSTEM, *CALLS, HI, BYE]).tokens)
    assert text.startswith(
        '[user] Be brief.\n\nHello.\n[assistant] {"name": "f", "arguments": {"n": 1}}\n[user] Result'
    )
    assert text.endswith("7\n[assistant] Hi.\n[user] Bye.\n[assistant]")


def test_ids_of_calls_are_short_where_the_template_wants_it() -> None:
    tokenizer = load_tokenizer(DEMO, [2])
    tokenizer._tokenizer.chat_template = SHORT_IDS
    text = tokenizer.decode(render(tokenizer, [*CALLS, BYE]).tokens)
    called, result = text.split("[call ")[1][:9], text.split("[result ")[1][:9]
    assert called == result
    assert called.isalnum()


def test_what_cannot_be_mended_is_refused_with_the_templates_words(strict: Any) -> None:
    with pytest.raises(PromptError, match="roles must alternate"):
        render(strict, [HI, HELLO])
