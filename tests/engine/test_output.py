"""The output parser: text, thinking and tool calls wherever the text is cut, and the chat message of a turn."""

import importlib
import json
import pkgutil
import random
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from mlx_lm import tool_parsers
from mlx_lm.utils import load_tokenizer

from mlxmtp import GenerationOptions, load
from mlxmtp.checkpoints.checkpoint import DEMO
from mlxmtp.engine.output import OutputParser, Segment, assistant_message, join_segments, parse_tool_calls
from mlxmtp.engine.prompt import encode
from tests.engine.kinds import TRAINED

CALL = '\n{"name": "get_menu_items", "arguments": {"query": "Latte"}}\n'
FUNCTION = {"name": "get_menu_items", "arguments": {"query": "Latte"}}
TURN = f"<think>\nA latte? < 5\n</think>\n\nLet me <see>.\n<tool_call>{CALL}</tool_call>\n<tool_call>x</tool_call>So."
PARTS = [
    Segment("thinking", "\nA latte? < 5\n"),
    Segment("text", "\n\nLet me <see>.\n"),
    Segment("tool", CALL),
    Segment("text", "\n"),
    Segment("tool", "x"),
    Segment("text", "So."),
]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """The bundled model's tokenizer, which has markers for thinking and for tool calls."""
    return load_tokenizer(DEMO)


class Marks:
    """A tokenizer with nothing but markers, and none for thinking."""

    has_thinking = False
    structural_markers = ()

    def __init__(
        self,
        call: tuple[str, str | None] | None = None,
        parser: Callable[[str, Any], Any] | None = None,
        response_format: dict[str, Any] | None = None,
    ) -> None:
        self.has_tool_calling = call is not None
        self.tool_call_start, self.tool_call_end = call or (None, None)
        self.tool_parser = parser
        self.response_initial_state = (response_format or {}).get("initial_state")
        self.response_transitions = (response_format or {}).get("transitions", {})


def fed(tokenizer: Any, pieces: Iterable[str], prompt: Iterable[int] = ()) -> list[Segment]:
    """What becomes of a text that comes in pieces; text that is empty only where it keeps two calls apart."""
    splitter = OutputParser(tokenizer, list(prompt))
    parts = join_segments([part for piece in pieces for part in splitter.feed(piece)] + [*splitter.finish()])
    return [part for i, part in enumerate(parts) if part.text or part.kind == "tool" or between_calls(parts, i)]


def between_calls(parts: list[Segment], at: int) -> bool:
    return [part.kind for part in parts[max(at - 1, 0) : at + 2]] == ["tool", "text", "tool"]


# -- cuts -----------------------------------------------------------------------------------------------------


def test_a_turn_may_be_cut_anywhere(tokenizer: Any) -> None:
    for cut in range(len(TURN) + 1):
        assert fed(tokenizer, [TURN[:cut], TURN[cut:]]) == PARTS, TURN[:cut]


def test_a_turn_may_come_in_small_pieces(tokenizer: Any) -> None:
    for size in (1, 2, 3, 5, 8, 13):
        assert fed(tokenizer, (TURN[at : at + size] for at in range(0, len(TURN), size))) == PARTS, size


TWO_CALLS = "<tool_call>a</tool_call><tool_call>b</tool_call>"


def test_two_calls_in_a_row_stay_two(tokenizer: Any) -> None:
    for cut in range(len(TWO_CALLS) + 1):
        parts = fed(tokenizer, [TWO_CALLS[:cut], TWO_CALLS[cut:]])
        assert parts == [Segment("tool", "a"), Segment("text", ""), Segment("tool", "b")], TWO_CALLS[:cut]


UNFINISHED = ["<", "<th", "<think", "<tool", "<tool_call", "a <tool_cal"]


def test_what_may_become_a_mark_is_held_back_until_the_end(tokenizer: Any) -> None:
    for text in UNFINISHED:
        parser = OutputParser(tokenizer, [])
        given = join_segments(parser.feed(f"Hi {text}"))
        assert given == [Segment("text", "Hi " + text[: text.index("<")])], text
        assert parser.finish() == (Segment("text", text[text.index("<") :]),), text
        assert parser.finish() == ()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>so </thi", [Segment("thinking", "so </thi")]),
        ("<think>so", [Segment("thinking", "so")]),
        ("<tool_call>{} </tool", [Segment("tool", "{} </tool")]),
        ("<think>so <tool_call>{}", [Segment("thinking", "so "), Segment("tool", "{}")]),
        ("done</think>", [Segment("text", "done</think>")]),
        ("</tool_call>", [Segment("text", "</tool_call>")]),
        ("<<think>a", [Segment("text", "<"), Segment("thinking", "a")]),
        ("<tool_<tool_call>a", [Segment("text", "<tool_"), Segment("tool", "a")]),
    ],
)
def test_marks_out_of_place(tokenizer: Any, text: str, expected: list[Segment]) -> None:
    for pieces in ([text], list(text)):
        assert fed(tokenizer, pieces) == expected


def test_no_more_is_held_back_than_could_be_a_mark(tokenizer: Any) -> None:
    splitter = OutputParser(tokenizer, [])
    given = ["".join(part.text for part in splitter.feed(piece)) for piece in ("a", " <t", "ool", "box>", " <", " 5")]
    assert given == ["a", " ", "", "<toolbox>", " ", "< 5"]


def test_text_alone(tokenizer: Any) -> None:
    assert fed(tokenizer, ["Hello", "", "!"]) == [Segment("text", "Hello!")]
    assert fed(tokenizer, []) == []


# -- how a turn begins ------------------------------------------------------------------------------------------


OPENINGS = {
    "opened": ("<think>\n", [Segment("thinking", "so"), Segment("text", "Hi")]),
    "opened again": (
        "<think>\na\n</think>\n\nb<|im_end|>\n<think>\n",
        [Segment("thinking", "so"), Segment("text", "Hi")],
    ),
    "closed": ("<think>\n\n</think>\n\n", [Segment("text", "so</think>Hi")]),
    "none": ("", [Segment("text", "so</think>Hi")]),
}


@pytest.mark.parametrize(("opening", "expected"), OPENINGS.values(), ids=OPENINGS)
def test_templates_may_open_the_thinking(tokenizer: Any, opening: str, expected: list[Segment]) -> None:
    prompt = tokenizer.encode(f"<|im_start|>assistant\n{opening}", add_special_tokens=False)
    assert fed(tokenizer, ["so</th", "ink>Hi"], prompt) == expected


def test_a_mark_that_others_write_opens_no_thinking(tokenizer: Any) -> None:
    """Or the whole answer would be a thought, and the next prompt would be without it."""
    prompts = {
        role: encode(tokenizer, [{"role": role, "content": "What does <think> mean?"}], raw=False)
        for role in ("user", "system", "tool", "assistant")
    }
    prompts["raw"] = encode(tokenizer, "What does <think> mean?\n", raw=True)
    for name, prompt in prompts.items():
        assert fed(tokenizer, ["It opens a thought."], prompt) == [Segment("text", "It opens a thought.")], name


def test_formats_of_their_own() -> None:
    """A response format can start in a state, and a marker of a call can also be its name."""
    transitions = {"normal": [("<|message|>", "normal")], "reasoning": [("<|final|>", "normal")]}
    marks = Marks(response_format={"initial_state": "reasoning", "transitions": transitions})
    assert fed(marks, ["hm<|fin", "al|>Hi"]) == [Segment("thinking", "hm"), Segment("text", "Hi")]


def test_calls_without_an_end_go_on_to_the_end() -> None:
    marks = Marks(call=("[TOOL_CALLS]", ""), parser=parser_of("mistral"))
    parts = fed(marks, ["Hm[TOOL_CALLS]", 'f[ARGS]{"a": 1}'])
    assert parts == [Segment("text", "Hm"), Segment("tool", 'f[ARGS]{"a": 1}')]
    (call,) = assistant_message(marks, parts)["tool_calls"]
    assert call["function"] == {"name": "f", "arguments": {"a": 1}}


def test_a_model_without_marks_says_text() -> None:
    assert fed(Marks(), [TURN]) == [Segment("text", TURN)]


def test_a_turn_that_ends_in_half_a_mark_is_given_out_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever it is cut, by its length or by a stop string: here the model's text is the beginning of a marker."""
    engine = load(TRAINED / "glm4_moe")
    text = engine.generate("Hello!", GenerationOptions(max_tokens=16)).text
    monkeypatch.setattr(engine.tokenizer, "_think_start", f"{text[4:10]}?")
    monkeypatch.setattr(engine.tokenizer, "_think_start_tokens", tuple(engine.tokenizer.encode(f"{text[4:10]}?")))
    monkeypatch.setattr(engine.tokenizer, "_think_end", "</think>")
    assert OutputParser(engine.tokenizer, []).feed(text[:8]) == (Segment("text", text[:4]),), "half a mark"
    cuts = [GenerationOptions(max_tokens=count) for count in range(3, 13)]
    for options in (*cuts, GenerationOptions(max_tokens=16, stop=[text[9:15]])):
        chunks = list(engine.stream("Hello!", options))
        parts = [part for chunk in chunks for part in chunk.segments]
        expected = text[: options.max_tokens] if not options.stop else text[: text.find(text[9:15])]
        assert join_segments(parts) == [Segment("text", expected)], options


# -- messages -------------------------------------------------------------------------------------------------


def assistant(content: str, *calls: dict[str, Any], thought: str | None = None) -> dict[str, Any]:
    answer: dict[str, Any] = {"role": "assistant", "content": content}
    if thought is not None:
        answer["reasoning_content"] = thought
    if calls:
        answer["tool_calls"] = [{"type": "function", "function": call} for call in calls]
    return answer


def made(tokenizer: Any, text: str) -> dict[str, Any]:
    return assistant_message(tokenizer, fed(tokenizer, [text]))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hi", assistant("Hi")),
        ("", assistant("")),
        ("\n two\nlines\n\n", assistant("\n two\nlines\n\n")),
        ("<think>\nhm\n</think>\n\nHi\n", assistant("Hi", thought="hm")),
        ("<think>hm", assistant("", thought="hm")),
        (f"<tool_call>{CALL}</tool_call>", assistant("", FUNCTION)),
        (f"One.\n<tool_call>{CALL}</tool_call>\nTwo.", assistant("One.\n\nTwo.", FUNCTION)),
        (f"<tool_call>{CALL}</tool_call><tool_call>{CALL}</tool_call>", assistant("", FUNCTION, FUNCTION)),
        (f"<tool_call>[{CALL}, {CALL}]</tool_call>", assistant("", FUNCTION, FUNCTION)),
        (f"<think>a<tool_call>{CALL}</tool_call>b", assistant("b", FUNCTION, thought="a")),
        ("<think>a</think>b<think>c</think>d", assistant("bd", thought="ac")),
    ],
)
def test_a_turn_as_a_message(tokenizer: Any, text: str, expected: dict[str, Any]) -> None:
    assert made(tokenizer, text) == expected


MALFORMED = {
    "no JSON": '{"name": "f", "argum',
    "empty": "",
    "a text": '"f"',
    "a number": "5",
    "nothing": "null",
    "no calls": "[]",
    "no name": '{"arguments": {}}',
    "no arguments": '{"name": "f"}',
    "one of two": '[{"name": "f", "arguments": {}}, 5]',
    "a name that is none": '{"name": 5, "arguments": {}}',
    "no name at all": '{"name": null, "arguments": {}}',
    "too deep": "[" * 100_000,
}


def test_calls_that_make_no_sense_stay_text(tokenizer: Any) -> None:
    """With their markers, as generated; valid calls beside them are still calls."""
    for name, call in MALFORMED.items():
        said = f"<tool_call>{call}</tool_call>"
        assert made(tokenizer, said) == assistant(said), name
        assert made(tokenizer, f"{said}<tool_call>{CALL}</tool_call>") == assistant(said, FUNCTION), name


STRANGE = {
    "a set": {"name": "f", "arguments": {"x": {1, 2}}},
    "bytes": {"name": "f", "arguments": {"x": b"a"}},
    "a complex number": {"name": "f", "arguments": {"x": 1j}},
    "an ellipsis": {"name": "f", "arguments": {"x": ...}},
    "a tuple for a key": {"name": "f", "arguments": {"x": {(1, 2): 3}}},
}


def test_calls_that_are_no_json_stay_text() -> None:
    """Some parsers read Python's literals."""
    for name, call in STRANGE.items():
        marks = Marks(call=("<call>", "</call>"), parser=lambda text, tools, call=call: call)
        assert made(marks, "<call>f</call>") == assistant("<call>f</call>"), name


def parser_of(name: str) -> Callable[[str, Any], Any]:
    return importlib.import_module(f"{tool_parsers.__name__}.{name}").parse_tool_call  # type: ignore[no-any-return]


def test_a_set_in_a_call_of_glm() -> None:
    """The same with a parser of mlx-lm's, of a family with heads."""
    marks = Marks(call=("<tool_call>", "</tool_call>"), parser=parser_of("glm47"))
    said = "<tool_call>f<arg_key>x</arg_key><arg_value>{1, 2}</arg_value></tool_call>"
    assert made(marks, said) == assistant(said)


VALUES: list[tuple[Any, str, Any]] = [
    ({"type": "integer"}, "three", "three"),
    ({"type": "integer"}, "3", 3),
    (True, "x y", "x y"),
    ({"type": "string"}, "5", "5"),
    ({"type": ["string", "integer"]}, "5", "5"),
    ({"anyOf": [{"type": "string"}, {"type": "integer"}]}, "5", "5"),
    ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, "5", 5),
    ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, "null", None),
    ({"oneOf": [{"type": "boolean"}, {"type": "number"}]}, "2.5", 2.5),
    ({"type": ["string", "null"]}, "5", "5"),
    ({"type": ["string", "null"]}, "null", None),
    ({"$ref": "#/$defs/count"}, "7", 7),
    ({"enum": [1, 2]}, "2", 2),
    ({"enum": ["1", "2"]}, "2", "2"),
    ({"type": ["array", "null"], "items": {"type": "integer"}}, "[1]", [1]),
]
XML_LIKE = {
    "qwen3_coder": "<function=f>\n<parameter=x>\n{}\n</parameter>\n<parameter=name>\n12\n</parameter>\n</function>",
    "glm47": "f<arg_key>x</arg_key><arg_value>{}</arg_value><arg_key>name</arg_key><arg_value>12</arg_value>",
    "minimax_m2": '<invoke name="f"><parameter name="x">{}</parameter><parameter name="name">12</parameter></invoke>',
}


def test_values_have_the_type_of_their_schema() -> None:
    """A value of another type goes through as text, and takes no other argument with it."""
    for name, call in XML_LIKE.items():
        marks = Marks(call=("<call>", "</call>"), parser=parser_of(name))
        for schema, said, expected in VALUES:
            properties = {"x": schema, "name": {"type": "string"}}
            parameters = {"type": "object", "properties": properties, "$defs": {"count": {"type": "integer"}}}
            tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
            (read,) = parse_tool_calls(marks, call.format(said), tools) or [None]
            assert read == {"name": "f", "arguments": {"x": expected, "name": "12"}}, (name, schema, said)


# -- whatever a model makes up --------------------------------------------------------------------------------

BITS = [
    *("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_", "</", "<", ">", "\n", " ", "a", "ö🙂", '"', "\\"),
    *("{", "}", "[", "]", '{"name": "f", "arguments": {}}', '{"name": "f"', "null", "NaN", "-1e999", "\x00", "\u2028"),
    *("<arg_key>x</arg_key>", "<arg_value>5</arg_value>", "<function=f>", "</function>", "<parameter=x>", "f(x=1)"),
    *('f[ARGS]{"a": 1}', "call:f{a:1}", '<|"|>', "f", "=", ",", "'"),
]
SEEDS = range(300)


def invented(seed: int) -> tuple[str, list[str]]:
    """A text, and the same in pieces."""
    dice = random.Random(seed)
    text = "".join(dice.choices(BITS, k=dice.randrange(1, 40)))
    pieces, rest = [], text
    while rest:
        size = dice.randrange(1, 9)
        pieces.append(rest[:size])
        rest = rest[size:]
    return text, pieces


def test_any_text_is_taken_apart_and_goes_into_the_history(tokenizer: Any) -> None:
    """Pieces make no difference, nothing raises, and the next prompt can be made of it."""
    kinds = set()
    for seed in SEEDS:
        text, pieces = invented(seed)
        parts = fed(tokenizer, pieces)
        assert parts == fed(tokenizer, [text]), text
        kinds |= {part.kind for part in parts}
        said = iter(text)
        for letter in "".join(part.text for part in parts):
            assert letter in said, f"{text!r} did not say {letter!r} there"
        answer = assistant_message(tokenizer, parts)
        again = json.loads(json.dumps(answer))
        assert json.dumps(again) == json.dumps(answer)
        encode(tokenizer, [{"role": "user", "content": "a"}, answer, {"role": "user", "content": "b"}], raw=False)
    assert kinds == {"text", "thinking", "tool"}, "the dice have thrown all there is"


def test_no_parser_makes_a_message_fail() -> None:
    for name in (module.name for module in pkgutil.iter_modules(tool_parsers.__path__)):
        marks = Marks(call=("<tool_call>", "</tool_call>"), parser=parser_of(name))
        for seed in SEEDS:
            text, _ = invented(seed)
            try:
                json.dumps(assistant_message(marks, [Segment("text", "a"), Segment("tool", text)]))
            except Exception as error:
                pytest.fail(f"{name}, {text!r}: {error}")
