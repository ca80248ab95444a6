"""Stop strings and end tokens: the text that is returned, and where the turn ends."""

import itertools

import pytest

from mlxmtp.engine.output import OutputParser, StreamingDetokenizer

END = 0


class Letters:
    """A tokenizer of one character a token, with mlx-lm's streaming interface."""

    eos_token_ids = frozenset({END})
    has_thinking = has_tool_calling = True
    think_start, think_end = "<think>", "</think>"
    tool_call_start, tool_call_end = "<call>", "</call>"
    structural_markers = ()

    def __init__(self, *, thinking: bool) -> None:
        self.detokenizer = self
        self.response_initial_state = "reasoning" if thinking else None
        self.response_transitions: dict[str, list[tuple[str, str]]] = {}
        self.reset()

    def rfind_think_start(self, _: list[int]) -> int:
        return -1

    def reset(self) -> None:
        self._new = ""

    def add_token(self, token: int) -> None:
        self._new += chr(token)

    def finalize(self) -> None:
        pass

    @property
    def last_segment(self) -> str:
        new, self._new = self._new, ""
        return new


def run(
    text: str,
    stop: list[str],
    sizes: list[int],
    *,
    thinking: bool = False,
    opening: str = "",
    raw: bool = False,
    tool_calls: bool = True,
) -> tuple[str, int, str | None, list[str]]:
    """Feed `text` in rounds of the given sizes; return the text, the tokens of the turn, the reason and the pieces."""
    letters = Letters(thinking=thinking)
    stream = StreamingDetokenizer(letters, stop, OutputParser(letters, [], opening, raw=raw), tool_calls=tool_calls)
    tokens, kept, pieces, finish = [ord(c) if c != "$" else END for c in text], 0, [], None
    for size in itertools.cycle(sizes):
        group, tokens = tokens[:size], tokens[size:]
        if not group or finish:
            break
        outcome = stream.feed(group)
        kept, finish = kept + outcome.count, outcome.finish
        pieces.append("".join(stream.take()))
    if not finish:
        stream.finish()
        pieces.append("".join(stream.take()))
    return "".join(pieces), kept, finish, pieces


@pytest.mark.parametrize("size", range(1, 8))
@pytest.mark.parametrize(
    ("text", "stop", "shown", "kept"),
    [
        ("one two three", ["two"], "one ", 7),
        ("aab aabc", ["aabc"], "aab ", 8),
        ("ababac", ["abac"], "ab", 6),
        ("stop at once", ["s"], "", 1),
        ("first or second", ["second", "or"], "first ", 8),
        ("both end here", ["nd", "end"], "both ", 8),
        ("end token$ more", ["more"], "end token", 10),
        ("held b$", ["back"], "held b", 7),
    ],
)
def test_where_a_turn_ends(text: str, stop: list[str], shown: str, kept: int, size: int) -> None:
    given, count, finish, _ = run(text, stop, [size])
    assert (given, count, finish) == (shown, kept, "stop")


def test_stop_strings_are_not_looked_for_in_the_thinking() -> None:
    for text, thinking, shown, finish in [
        ("a stop</think>b stop", True, "a stop</think>b ", "stop"),
        ("a stop</thin stop", True, "a stop</thin stop", None),
        ("<think>a stop</think>b stop", False, "<think>a stop</think>b ", "stop"),
        ("x <think>stop</think><think>stop</think>stop!", False, "x <think>stop</think><think>stop</think>", "stop"),
        ("x stop <think>", False, "x ", "stop"),
        ("a</think>b</think> stop", True, "a</think>b</think> ", "stop"),
    ]:
        for size in (1, 2, 3, 50):
            given, _, reason, _ = run(text, ["stop"], [size], thinking=thinking)
            assert (given, reason) == (shown, finish), f"{text} in pieces of {size}"
    assert run("a <think> b", ["<think>"], [2])[:1] == ("a ",), "a marker may be a stop string"


def test_stop_strings_are_looked_for_in_the_answer_alone() -> None:
    """Not in a tool call, also where it comes in the thinking or the prompt has begun it, but in a call without tools.

    A completion without a template has no thinking, whatever it spells.
    """
    call = "<call>{stop}</call>"
    tools: dict[str, bool] = {"tool_calls": True}
    for text, options, shown, finish in [
        (f"a {call}b stop", tools, f"a {call}b ", "stop"),
        (f"{call}{call}", tools, f"{call}{call}", None),
        ("<call>stop", tools, "<call>stop", None),
        (f"hm {call}b stop", {"thinking": True} | tools, f"hm {call}b ", "stop"),
        (f"<think>stop{call} stop", tools, f"<think>stop{call} ", "stop"),
        ("stop</call> stop", {"opening": "<call>"} | tools, "stop</call> ", "stop"),
        (f"a {call}", {"tool_calls": False}, "a <call>{", "stop"),
        ("a <think>b stop", {"raw": True}, "a <think>b ", "stop"),
        ("a <call>b stop", {"raw": True}, "a <call>b ", "stop"),
        ("hm stop", {"thinking": True, "raw": True}, "hm ", "stop"),
    ]:
        for size in (1, 2, 3, 50):
            given, _, reason, _ = run(text, ["stop"], [size], **options)  # type: ignore[arg-type]
            assert (given, reason) == (shown, finish), f"{text} in pieces of {size}"
    assert run("a\n<call>b", ["\n<call>"], [2])[0] == "a", "a stop string may have a marker"


@pytest.mark.parametrize("size", [1, 3])
def test_without_a_stop_nothing_is_lost(size: int) -> None:
    assert run("no end in sigh", ["sight"], [size])[:3] == ("no end in sigh", 14, None)


def test_text_is_held_back_only_while_it_may_be_a_stop() -> None:
    pieces = run("abxy", ["abc"], [1])[3]
    assert pieces == ["", "", "abx", "y", ""]
