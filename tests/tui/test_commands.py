"""The table of the slash commands, and what is one."""

import pytest
from mlxmtp_tui import commands
from mlxmtp_tui.slash import SlashCommandApp, code_blocks


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/help", ("help", "")),
        ("/temp 0.5", ("temp", "0.5")),
        ("/TEMP   0.5  ", ("temp", "0.5")),
        ("/system You are\nvery short.", ("system", "You are\nvery short.")),
        ("/system\nYou are very short.", ("system", "You are very short.")),
        ("/quit", ("exit", "")),
        ("/new", ("clear", "")),
        ("/resume a chat", ("load", "a chat")),
        ("/regenerate", ("retry", "")),
        ("/continue", ("load", "")),
        ("/nonsense x", ("nonsense", "x")),
        ("/usr/bin/python is old", None),
        ("//help is a command", None),
        ("/", None),
        ("/ help", None),
        ("/2", None),
        ("half /help", None),
        ("", None),
    ],
)
def test_a_command_is_a_slash_and_a_word(text: str, expected: tuple[str, str] | None) -> None:
    assert commands.parse(text) == expected


def test_every_command_is_carried_out_by_a_method_and_every_alias_names_a_command() -> None:
    names = {command.name for command in commands.COMMANDS}
    assert len(names) == len(commands.COMMANDS)
    assert {name.removeprefix("command_") for name in dir(SlashCommandApp) if name.startswith("command_")} == names
    assert set(commands.ALIASES.values()) <= names
    assert not set(commands.ALIASES) & names


def test_completions_begin_as_the_word_does_in_any_case() -> None:
    def names(word: str) -> list[str]:
        return [command.name for command in commands.completions(word)]

    assert names("/s") == ["system", "seed", "stats", "save"]
    assert names("/ST") == ["stats"]
    assert names("/nonsense") == []
    assert len(names("/")) == len(commands.COMMANDS)


def test_usage_shows_the_arguments_where_there_are_any() -> None:
    assert commands.BY_NAME["depth"].usage == "/depth [N|auto]"
    assert commands.BY_NAME["help"].usage == "/help"


def test_code_blocks_are_what_stands_in_fences_wherever_they_are() -> None:
    text = "a\n\n```python\nx = 1\n```\n\n- item\n  ~~~\n  y = `2`\n  ~~~\n\n````md\n```\nz\n```\n````\n\n```\nopen"
    assert code_blocks(text) == ["x = 1\n", "y = `2`\n", "```\nz\n```\n", "open"]
    assert code_blocks("`inline` only") == []
