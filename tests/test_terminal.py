"""Text that others wrote controls no terminal, and is exact elsewhere."""

import io
import json

from mlxmtp.terminal import say, visible

HOSTILE = {
    "\x1b]52;c;eA==\x07": r"\u001b]52;c;eA==\u0007",
    "\x1b]0;title\x1b\\": r"\u001b]0;title\u001b" + "\\",
    "\x9b2J\x85\x90": r"\u009b2J\u0085\u0090",
    "\x00\x08\x0b\x0c\x7f": r"\u0000\u0008\u000b\u000c\u007f",
    "a\u202eb\u202ac\u2066d\u2069": r"a\u202eb\u202ac\u2066d\u2069",
    "over\rwritten": r"over\u000dwritten",
}
HARMLESS = ("a\tb\nc\r\nd", "Grüße 🎈👨‍👩‍👧", "می‌خواهم", "א\u200fב", "\\u001b", "")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_control_characters_are_shown_and_others_stay() -> None:
    for text, shown in HOSTILE.items():
        assert visible(text) == shown, shown
        assert "".join(map(visible, text)) == shown, f"{shown}: in pieces"
    for text in HARMLESS:
        assert visible(text) == text


def test_json_means_the_same() -> None:
    for text in (*HOSTILE, *HARMLESS):
        written = json.dumps({text: text}, ensure_ascii=False)
        assert json.loads(visible(written)) == {text: text}, repr(text)


def test_a_pipe_gets_the_text_and_a_terminal_what_is_visible() -> None:
    for text, shown in HOSTILE.items():
        pipe, terminal = io.StringIO(), Terminal()
        say(text, out=pipe)
        say(text, end="", out=terminal)
        assert (pipe.getvalue(), terminal.getvalue()) == (f"{text}\n", shown)
