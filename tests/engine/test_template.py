"""Chat templates are rendered as transformers does, and are cut when they take too long or too much."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from types import MappingProxyType
from typing import Any

import pytest

from mlxmtp.checkpoints.checkpoint import DEMO
from mlxmtp.engine import template
from mlxmtp.engine.loading import load_tokenizer
from mlxmtp.engine.prompt import apply_template, render
from mlxmtp.engine.template import Limits, TemplateProcess
from mlxmtp.errors import PromptError, TemplateLimitError

SAY = "{{ messages[0].content }}"
LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
GROW = "{% set ns = namespace(x=START) %}{% for i in range(60) %}{% set ns.x = STEP %}{% endfor %}{{ ns.x }}"
USER = {"role": "user", "content": "hi"}
TOOL = {"type": "function", "function": {"name": "f", "description": "é\ud83d", "parameters": {"type": "object"}}}


@pytest.fixture(scope="module")
def process() -> Iterator[TemplateProcess]:
    small = TemplateProcess(Limits(seconds=20, memory_bytes=200 << 20, min_characters=1000))
    yield small
    small._end()


def assert_cut(process: TemplateProcess, name: str, source: str, why: str) -> None:
    """The template is cut for this reason, and the next one is rendered."""
    with pytest.raises(TemplateLimitError, match=f"the model's chat template was cut: .*{why}"):
        process.render(source, [USER], {})
    assert process.render(SAY, [USER], {}) == "hi", name


def test_a_template_that_does_not_end_is_cut() -> None:
    """Within one step of Jinja too, where no counter of steps helps."""
    process = TemplateProcess(Limits(seconds=0.5))
    started = time.perf_counter()
    assert_cut(process, "loops", LOOP, "longer than 0.5 seconds")
    assert_cut(process, "a list of lists", GROW.replace("START", "[]").replace("STEP", "[ns.x, ns.x]"), "longer than")
    assert time.perf_counter() - started < 30
    process._end()


def test_a_template_that_builds_too_much_is_cut(process: TemplateProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template, "resident_bytes", lambda _: 0)  # the kernel's limit alone
    cases = {
        "doubled text": (GROW.replace("START", "'ab'").replace("STEP", "ns.x ~ ns.x"), "too much memory"),
        "padding": ("{{ 'x' | center(9999999999) }}", "too much memory"),
        "repetition": ("{{ 'x' * 9999999999 }}", "too much memory"),
        "many pieces": ("{% for i in range(9999) %}" + "x" * 100 + "{% endfor %}", "it writes 999,900 characters"),
        "recursion": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "nested too deeply"),
    }
    for name, (source, why) in cases.items():
        assert_cut(process, name, source, why)


def test_a_process_that_grows_where_nothing_bounds_it(
    process: TemplateProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(template, "resident_bytes", lambda _: 300 << 20)
    with pytest.raises(TemplateLimitError, match=r"more than 209\.7 MB"):
        process.render(LOOP, [USER], {})


def test_the_memory_of_a_process_is_seen(process: TemplateProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    assert process.render(SAY, [USER], {}) == "hi"  # a process that has only begun takes next to nothing
    assert process._process
    assert 1 << 20 < template.resident_bytes(process._process.pid) < 1 << 30
    assert template.resident_bytes(1 << 30) == 0
    monkeypatch.setenv("PATH", "")  # no `ps`: texts are rendered all the same
    assert template.resident_bytes(process._process.pid) == 0


def test_errors_of_the_template_are_its_own(process: TemplateProcess) -> None:
    for source, why in (
        ("{{ raise_exception('no tools here') }}", "no tools here"),
        ("{% for %}", "Expected"),
        ("{{ 1 / 0 }}", "zero"),
    ):
        with pytest.raises(ValueError, match=why) as caught:
            process.render(source, [USER], {})
        assert not isinstance(caught.value, TemplateLimitError), source
    with pytest.raises(ValueError, match=r"^x{1000}$"):
        process.render("{{ raise_exception('x' * 9999) }}", [USER], {})


def test_a_text_is_cut_from_another_thread() -> None:
    process = TemplateProcess(Limits(seconds=100))
    caught: list[Exception] = []

    def work() -> None:
        try:
            process.render(LOOP, [USER], {})
        except Exception as error:
            caught.append(error)

    with process.interrupted(), pytest.raises(TemplateLimitError):
        process.render(SAY, [USER], {})
    thread = threading.Thread(target=work)
    thread.start()
    while not process._lock.locked():
        time.sleep(0.01)
    time.sleep(0.2)
    with process.interrupted():
        thread.join(20)
    assert isinstance(caught[0], TemplateLimitError)
    process._end()


def test_texts_are_those_of_transformers() -> None:
    tokenizer = load_tokenizer(DEMO)
    inner = tokenizer._tokenizer
    call = {"function": {"name": "f", "arguments": {"a": [1, None, 2.5, True]}}}
    conversations: list[list[Any]] = [
        [USER],
        [{"role": "system", "content": "Grüße, 世界 🙂 \ud800"}, USER],
        [USER, {"role": "assistant", "content": None, "reasoning": "so", "tool_calls": [call]}, MappingProxyType(USER)],
    ]
    for messages in conversations:
        for variables in ({}, {"tools": [TOOL]}, {"enable_thinking": False, "add_generation_prompt": True}):
            expected = inner.apply_chat_template(
                [dict(message) for message in messages],
                **{"enable_thinking": tokenizer.has_thinking} | variables,
                tokenize=False,
            )
            assert tokenizer.apply_chat_template(messages, **variables, tokenize=False) == expected, (
                messages,
                variables,
            )


def test_a_prompt_whose_template_is_cut_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither other forms of the messages are tried, nor other conversations."""
    tokenizer = load_tokenizer(DEMO)
    tried: list[Any] = []

    def cut(_: Any, messages: Any, variables: Any) -> str:
        tried.append(messages)
        if variables["add_generation_prompt"] or len(tried) > 2:
            raise TemplateLimitError("cut")
        return "text"

    monkeypatch.setattr(template.renderer(), "render", cut)
    system = {"role": "system", "content": "brief"}
    with pytest.raises(PromptError, match=r"^cut$"):
        render(tokenizer, [system, USER, USER])
    assert len(tried) == 1
    assert apply_template(tokenizer, [system, USER, USER], add_generation_prompt=False) == "text"
