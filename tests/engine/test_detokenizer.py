"""Stop strings and end tokens: the text that is returned, and where the turn ends."""

import itertools

import pytest

from mlxmtp.engine.output import StreamingDetokenizer

END = 0


class Letters:
    """A tokenizer of one character a token, with mlx-lm's streaming interface."""

    eos_token_ids = frozenset({END})
    think_start, think_end = "<think>", "</think>"

    def __init__(self) -> None:
        self.detokenizer = self
        self.reset()

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
    text: str, stop: list[str], sizes: list[int], *, thinking: bool = False
) -> tuple[str, int, str | None, list[str]]:
    """Feed `text` in rounds of the given sizes; return the text, the tokens of the turn, the reason and the pieces."""
    stream = StreamingDetokenizer(Letters(), stop, thinking=thinking)
    tokens, kept, pieces, finish = [ord(c) if c != "$" else END for c in text], 0, [], None
    for size in itertools.cycle(sizes):
        group, tokens = tokens[:size], tokens[size:]
        if not group or finish:
            break
        outcome = stream.feed(group)
        kept, finish = kept + outcome.count, outcome.finish
        pieces.append(stream.take())
    if not finish:
        stream.finish()
        pieces.append(stream.take())
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


@pytest.mark.parametrize("size", [1, 3])
def test_without_a_stop_nothing_is_lost(size: int) -> None:
    assert run("no end in sigh", ["sight"], [size])[:3] == ("no end in sigh", 14, None)


def test_text_is_held_back_only_while_it_may_be_a_stop() -> None:
    pieces = run("abxy", ["abc"], [1])[3]
    assert pieces == ["", "", "abx", "y", ""]
