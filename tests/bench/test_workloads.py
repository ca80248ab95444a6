"""Prompts by workload, built-in or from a file, the first of each; and long texts."""

import json
from pathlib import Path

import pytest

from mlxmtp import Engine, OptionError, PromptError
from mlxmtp.bench.workloads import LONG_TEXTS, WorkloadPrompt, load_prompts, long_text, parse, select

GOOD = '{"workload": "math", "id": "q1", "turns": ["How many?", "And now?"]}\n'


def test_ours_have_every_kind_of_workload():
    prompts = load_prompts()
    kinds = [prompt.workload for prompt in prompts]
    assert list(dict.fromkeys(kinds)) == [
        "ordering", "repeat", "edits", "code", "math", "chat", "story", "summarise",
    ]  # fmt: skip
    assert all(kinds.count(kind) >= 3 for kind in kinds)
    assert len({(prompt.workload, prompt.name) for prompt in prompts}) == len(prompts)
    assert any(prompt.tools for prompt in prompts)
    assert all(prompt.raw for prompt in prompts if prompt.workload in ("repeat", "edits"))


def test_a_file_of_prompts(tmp_path: Path):
    file = tmp_path / "prompts.jsonl"
    file.write_text(GOOD + "\n" + json.dumps({"workload": "code", "turns": ["a\u2028b"], "raw": True}) + "\n")
    assert load_prompts(file) == [
        WorkloadPrompt("math", "q1", "How many?"),
        WorkloadPrompt("code", "3", "a\u2028b", raw=True),
    ]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "not JSON"),
        ("[1]", "expected an object with `workload`"),
        ('{"turns": ["a"]}', "expected an object with `workload`"),
        ('{"workload": "", "turns": ["a"]}', "expected an object with `workload`"),
        ('{"workload": "a", "turns": []}', "expected an object with `workload`"),
        ('{"workload": "a", "turns": "hello"}', "expected an object with `workload`"),
        ('{"workload": "a", "turns": [3]}', "the first of `turns` is 3; expected a text"),
        ('{"workload": "a", "turns": [""]}', "expected a text"),
        ('{"workload": "a", "turns": ["b"], "tools": {}}', "`tools` is {}"),
    ],
)
def test_a_malformed_line_is_named(line: str, said: str):
    with pytest.raises(PromptError, match=r"^file, line 2: ") as caught:
        parse(GOOD + line + "\n" + GOOD, "file")
    assert said in str(caught.value)


def test_files_that_are_none(tmp_path: Path):
    with pytest.raises(PromptError, match=r"absent\.jsonl: No such file"):
        load_prompts(tmp_path / "absent.jsonl")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PromptError, match="not UTF-8"):
        load_prompts(tmp_path / "bytes")
    with pytest.raises(PromptError, match="file has no prompts"):
        parse("\n \n", "file")


def test_the_first_of_each_of_the_named_workloads():
    prompts = [WorkloadPrompt(kind, str(i), "text") for i in range(3) for kind in ("a", "b")]
    chosen = [(prompt.workload, prompt.name) for prompt in select(prompts, [], 2)]
    assert chosen == [("a", "0"), ("a", "1"), ("b", "0"), ("b", "1")]
    assert [prompt.name for prompt in select(prompts, ["b", "b"], 9)] == ["0", "1", "2"]
    with pytest.raises(OptionError, match="no workload 'c'; expected one of a, b"):
        select(prompts, ["a", "c"], 1)


def test_tokens_of_a_prompt(engine: Engine):
    """A raw text is taken as it is, another one is a user message; tools reach the template."""
    tokenizer = engine.tokenizer
    assert tokenizer.decode(list(WorkloadPrompt("a", "b", "hello", raw=True).tokens(tokenizer))) == "hello"
    said = tokenizer.decode(list(WorkloadPrompt("a", "b", "hello").tokens(tokenizer)))
    assert said == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert WorkloadPrompt("a", "b", "hello", tools=({"type": "function"},)).tokens(tokenizer)


def test_a_long_text_is_as_long_as_it_should_be(engine: Engine):
    short, long = long_text(engine.tokenizer, 100), long_text(engine.tokenizer, 3000)
    assert (len(short), len(long)) == (100, 3000)
    assert long[:100] == short
    assert long_text(engine.tokenizer, 0) == ()


def test_without_python_s_source_code_it_says_so(engine: Engine, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mlxmtp.bench.workloads.LONG_TEXTS", LONG_TEXTS[:0])
    with pytest.raises(OptionError, match="only 0 tokens of text for a context of 10"):
        long_text(engine.tokenizer, 10)
