"""Messages as the model reads them, and the positions where other prompts part from them."""

import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from mlx_lm.utils import load_tokenizer

from mlxmtp import GenerationOptions, PromptError, load
from mlxmtp.checkpoints.checkpoint import DEMO
from mlxmtp.engine.prefix_cache import PrefixCache
from mlxmtp.engine.prompt import encode, render, render_prompt
from tests import tiny

QWEN = """
{%- if tools %}<|im_start|>system
{% if messages[0].role == 'system' %}{{ messages[0].content + '\n' }}{% endif %}# Tools
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}<|im_end|>
{% elif messages[0].role == 'system' %}<|im_start|>system
{{ messages[0].content }}<|im_end|>
{% endif %}
{%- set ns = namespace(last=-1) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{%- for m in messages %}
{%- if m.role == 'assistant' %}<|im_start|>assistant
{% if loop.index0 > ns.last %}<think>
{{ m.reasoning_content }}
</think>

{% endif %}{{ m.content }}<|im_end|>
{% elif m.role == 'tool' %}<|im_start|>user
<tool_response>
{{ m.content }}
</tool_response><|im_end|>
{% elif m.role == 'user' %}<|im_start|>user
{{ m.content }}<|im_end|>
{% endif %}{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and not enable_thinking %}<think>

</think>

{% else %}<think>
{% endif %}{% endif %}"""
"""Leaves out the thinking before the last user message, as Qwen's templates do."""

GEMMA = """{{ bos_token }}{% if messages[0].role == 'system' %}{% set first = messages[0].content + '\n\n' %}
{%- set rest = messages[1:] %}{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}
{%- for m in rest %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Conversation roles must alternate') }}{% endif %}<start_of_turn>
{{- 'model' if m.role == 'assistant' else m.role }}
{{ first if loop.first else '' }}{{ m.content | trim }}<end_of_turn>
{% endfor %}{% if add_generation_prompt %}<start_of_turn>model
{% endif %}"""
"""The system prompt is a part of the first message, and roles alternate."""

STUBBORN = """{% if not add_generation_prompt %}{{ raise_exception('only to be answered') }}{% endif %}
{%- for m in messages %}{{ m.role }}: {{ m.content }}
{% endfor %}assistant: """

TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
SYSTEM = {"role": "system", "content": "You are terse."}
ASKS = {"role": "user", "content": "What is in the file?"}
THINKS = {"role": "assistant", "reasoning_content": "I shall look.", "content": "Looking."}
RESULT = {"role": "tool", "content": "Nothing."}
SAYS = {"role": "assistant", "reasoning_content": "Empty.", "content": "It is empty."}
AGAIN = {"role": "user", "content": "Are you sure?"}


@pytest.fixture(scope="module")
def loaded() -> Any:
    return load_tokenizer(DEMO)


@pytest.fixture
def tokenizer(loaded: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The bundled model's with a template after Qwen's."""
    monkeypatch.setattr(loaded._tokenizer, "chat_template", QWEN)
    return loaded


def at_marks(tokenizer: Any, rendered: Any) -> list[str]:
    """Return the last characters before each boundary, and of the whole prompt."""
    cuts = [0, *rendered.boundaries, len(rendered.tokens)]
    pieces = [tokenizer.decode(rendered.tokens[a:b]) for a, b in pairwise(cuts)]
    return [piece[-60:] for piece in pieces]


def test_where_prompts_part(tokenizer: Any) -> None:
    found = render(tokenizer, [SYSTEM, ASKS, THINKS, RESULT], tools=TOOLS)
    head, user, last, opening = at_marks(tokenizer, found)
    assert head.endswith("<|im_end|>\n<|im_start|>user\n")
    assert user.endswith("in the file?<|im_end|>\n")
    assert last.endswith("</tool_response><|im_end|>\n")
    assert opening == "<|im_start|>assistant\n<think>\n"


@pytest.mark.parametrize(
    ("messages", "tools", "count"),
    [
        ([SYSTEM, ASKS], None, 2),
        ([ASKS], TOOLS, 2),
        ([SYSTEM, ASKS], TOOLS, 2),
        ([ASKS], None, 1),
        ([ASKS, SAYS, AGAIN], None, 1),
        ([SYSTEM, ASKS, THINKS, RESULT], None, 3),
        ([SYSTEM], None, 2),
        ([{"role": "developer", "content": "Be terse."}, ASKS], None, 2),
    ],
)
def test_marks_are_within_the_prompt_and_ascend(tokenizer: Any, messages: Any, tools: Any, count: int) -> None:
    found = render(tokenizer, messages, tools=tools)
    assert list(found.boundaries) == sorted({mark for mark in found.boundaries if 0 < mark < len(found.tokens)})
    assert len(found.boundaries) <= count
    assert len(found.boundaries) >= 1


def test_the_next_prompts_begin_with_what_is_marked(tokenizer: Any) -> None:
    """The answer comes back without its thoughts; the user asks something else; another conversation begins."""
    one = render(tokenizer, [SYSTEM, ASKS, THINKS, RESULT], tools=TOOLS)
    head, user, last = one.boundaries
    step = render(tokenizer, [SYSTEM, ASKS, THINKS, RESULT, SAYS, RESULT], tools=TOOLS)
    assert step.tokens[:last] == one.tokens[:last]
    stripped = render(tokenizer, [SYSTEM, ASKS, THINKS, RESULT, SAYS, AGAIN], tools=TOOLS)
    assert stripped.tokens[:last] != one.tokens[:last], "thoughts before the last question are gone"
    assert stripped.tokens[:user] == one.tokens[:user]
    other = render(tokenizer, [SYSTEM, AGAIN], tools=TOOLS)
    assert other.tokens[:head] == one.tokens[:head]
    assert other.tokens[: head + 1] != one.tokens[: head + 1]
    assert other.boundaries[0] == head
    plain = render(tokenizer, [SYSTEM, ASKS, THINKS, RESULT], tools=TOOLS, thinking=False)
    assert plain.tokens[:last] == one.tokens[:last]
    assert plain.tokens != one.tokens
    assert plain.boundaries == one.boundaries


def test_the_end_of_the_tools_where_they_come_first(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt with another system prompt begins with them. Few characters are not worth a boundary."""
    text = "{% if messages[0].role == 'system' %}{{ messages[0].content + '\n' }}{% endif %}"
    first = QWEN.replace(text, "").replace("{% endfor %}<|im_end|>", "{% endfor %}" + text + "<|im_end|>", 1)
    monkeypatch.setattr(tokenizer._tokenizer, "chat_template", first)
    few = render(tokenizer, [SYSTEM, ASKS], tools=TOOLS)
    assert len(few.boundaries) == 2
    found = render(tokenizer, [SYSTEM, ASKS], tools=TOOLS * 8)
    tools, head, _ = found.boundaries
    changed = render(tokenizer, [{"role": "system", "content": "Be verbose."}, ASKS], tools=TOOLS * 8)
    assert found.tokens[:tools] == changed.tokens[:tools]
    assert tokenizer.decode(found.tokens[tools:head]).startswith(SYSTEM["content"])
    monkeypatch.setattr(tokenizer._tokenizer, "chat_template", QWEN)
    assert len(render(tokenizer, [SYSTEM, ASKS], tools=TOOLS * 8).boundaries) == 2, "the tools come last"


@pytest.mark.parametrize("content", ["a", "b", "ab", "\nb", "a\n", "🙂", "é" * 3, " "])
def test_what_the_user_says_does_not_move_the_first_mark(tokenizer: Any, content: str) -> None:
    expected = render(tokenizer, [SYSTEM, ASKS]).boundaries[0]
    found = render(tokenizer, [SYSTEM, {"role": "user", "content": content}])
    if content[0] == "\n":  # a token of two line ends, which others do not share
        expected -= found.tokens[expected - 1] != render(tokenizer, [SYSTEM, ASKS]).tokens[expected - 1]
    assert found.boundaries[0] == expected


def test_tokens_do_not_depend_on_marks(tokenizer: Any) -> None:
    messages = [SYSTEM, ASKS, THINKS, RESULT, SAYS, {"role": "user", "content": "Grüße 🙂\t\n\n x"}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    expected = tokenizer.encode(text, add_special_tokens=False)
    assert render(tokenizer, messages).tokens == expected
    assert render_prompt(tokenizer, messages, raw=False) == render(tokenizer, messages)
    assert encode(tokenizer, messages, raw=False) == expected


def test_a_template_in_which_roles_alternate(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer._tokenizer, "chat_template", GEMMA)
    found = render(tokenizer, [SYSTEM, ASKS, SAYS, AGAIN])
    head, last, opening = at_marks(tokenizer, found)
    assert head.endswith("You are terse.\n\n")
    assert last.endswith("Are you sure?<end_of_turn>\n")
    assert opening == "<start_of_turn>model\n"


def test_a_template_that_refuses_what_marks_are_found_by(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer._tokenizer, "chat_template", STUBBORN)
    found = render(tokenizer, [SYSTEM, ASKS])
    assert tokenizer.decode(found.tokens).endswith("What is in the file?\nassistant: ")
    assert found.boundaries == ()


def test_a_tokenizer_without_offsets(tokenizer: Any) -> None:
    class Slow:
        """Such as those of Mistral's own library."""

        is_fast = False
        _tokenizer = None

        def __getattr__(self, name: str) -> Any:
            return getattr(tokenizer, name)

    messages = [SYSTEM, ASKS, THINKS, RESULT]
    assert render(Slow(), messages, tools=TOOLS) == render(tokenizer, messages, tools=TOOLS)


def test_variables_of_the_template(tokenizer: Any) -> None:
    quiet = render(tokenizer, [ASKS], options={"enable_thinking": False})
    assert quiet == render(tokenizer, [ASKS], thinking=False)
    assert tokenizer.decode(quiet.tokens).endswith("<think>\n\n</think>\n\n")


def test_messages_that_a_template_refuses(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer._tokenizer, "chat_template", GEMMA)
    with pytest.raises(PromptError, match="refuses these messages: Conversation roles must alternate"):
        render(tokenizer, [{"role": "assistant", "content": "Hi."}, ASKS])
    with pytest.raises(PromptError, match=r"cannot be tokenised: its character .* is half a surrogate pair; expected"):
        render(tokenizer, [{"role": "user", "content": "\ud800"}])


def test_a_model_without_a_template(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "has_chat_template", False)
    with pytest.raises(PromptError, match="no chat template"):
        render(tokenizer, [ASKS])
    assert render_prompt(tokenizer, "Hello", raw=False).boundaries == ()


def test_a_conversation(tmp_path: Path) -> None:
    """With the demo's tokenizer and template: regenerated, edited, gone on, under the same head: only new text is read.

    The model is a small one whose caches go back to snapshots only, so that the boundaries have to be right.
    """
    folder = tiny.raw_checkpoint(tmp_path / "model", "qwen3_5", dtype="float32", vocab=4096)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO / name, folder)
    engine, prefixes = load(folder), PrefixCache(1 << 30)
    told: list[int] = []

    def ask(messages: list[dict[str, Any]]) -> tuple[str, int]:
        told[:] = [0]
        found = engine.generate(
            messages,
            GenerationOptions(max_tokens=8, depth=3),
            prefix_cache=prefixes,
            on_prefill=lambda _, total: told.append(total),
        )
        assert found.tokens == engine.generate(messages, GenerationOptions(max_tokens=8, depth=0)).tokens
        return found.text, told[-1]

    system = {"role": "system", "content": " ".join(f"Rule {number}: be brief." for number in range(14))}
    first = {"role": "user", "content": "Hi, I'd like a large latte with oat milk, please."}
    answer, total = ask([system, first])
    assert ask([system, first]) == (answer, 2), "of three that open the answer; the last is for the first round"
    messages = [system, first, {"role": "assistant", "content": answer}, {"role": "user", "content": "Thanks!"}]
    second, read_then = ask(messages)
    assert read_then < 40
    edited = [*messages[:2], {"role": "assistant", "content": "No."}, {"role": "user", "content": "Why?"}]
    assert ask(edited)[1] < 40
    assert ask([*messages, {"role": "assistant", "content": second}, first])[1] < 60
    assert ask([system, {"role": "user", "content": "Something else"}])[1] < 20 < total // 5
    assert prefixes.stats.hits == 5
