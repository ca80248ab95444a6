"""Templates without a system role, or that want roles to alternate, are given what they take."""

from __future__ import annotations

from typing import Any

import pytest

from mlxmtp import PromptError
from mlxmtp.engine.loading import DEMO, load_tokenizer
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


def test_what_cannot_be_mended_is_refused_with_the_templates_words(strict: Any) -> None:
    with pytest.raises(PromptError, match="roles must alternate"):
        render(strict, [HI, HELLO])
