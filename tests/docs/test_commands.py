"""Every command that a document shows is one that the program takes."""

import contextlib
import io
import re
import shlex
from pathlib import Path

import pytest

from mlxmtp.cli import parser
from tests.docs.markdown import code_blocks, documents, without_code

REPO = Path(__file__).resolve().parent.parent.parent
ENDS = {"|", "||", "&&", ";", ">", "2>", "&"}
"""Where the shell goes on with something else."""


def commands_of(text: str) -> list[list[str]]:
    """The arguments of each `mlxmtp ...` in a document's shell blocks and in its running text."""
    found: list[list[str]] = []
    lines = [line for block in code_blocks(text, "sh", "bash") for line in block.replace("\\\n", " ").splitlines()]
    spans = re.findall(r"`(mlxmtp [^`]+)`", " ".join(without_code(text).split("\n")))
    lines += [span.translate({ord("["): None, ord("]"): None}) for span in spans]
    for line in lines:
        words = shlex.split(line, comments=True)
        while "mlxmtp" in words:
            words = words[words.index("mlxmtp") + 1 :]
            end = next((i for i, word in enumerate(words) if word in ENDS), len(words))
            if not {"...", "…", "COMMAND"} & set(words[:end]):
                found.append(words[:end])
    return found


def refusal(arguments: list[str]) -> str | None:
    """What the program says against these arguments; a lone name only names a command."""
    if len(arguments) == 1:
        arguments = [*arguments, "--help"]
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            parser().parse_args(arguments)
    except SystemExit as stop:
        return said.getvalue() if stop.code else None
    return None


@pytest.mark.parametrize("document", documents(REPO), ids=lambda file: str(file.relative_to(REPO)))
def test_commands_are_taken(document: Path) -> None:
    found = commands_of(document.read_text())
    wrong = [f"mlxmtp {shlex.join(arguments)}: {said}" for arguments in found if (said := refusal(arguments))]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("document", documents(REPO), ids=lambda file: str(file.relative_to(REPO)))
def test_scripts_and_targets_exist(document: Path) -> None:
    shell = "\n".join(code_blocks(document.read_text(), "sh", "bash"))
    targets = set(re.findall(r"^([a-z-]+):", (REPO / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"^make ([a-z-]+)", shell, re.MULTILINE)) <= targets
    for name in re.findall(r"(?<![\w/.-])((?:scripts|examples|tests|\.ci)/[\w./-]+)", shell):
        assert (REPO / name).exists(), f"{name} is not there"


def test_the_readme_shows_the_main_commands() -> None:
    shown = {arguments[0] for arguments in commands_of((REPO / "README.md").read_text()) if arguments}
    assert {"chat", "generate", "serve", "connect", "inspect", "bench", "doctor"} <= shown


def test_a_command_that_is_not_taken_is_found() -> None:
    text = "`mlxmtp chat --no-such-option`\n```sh\ngit diff | mlxmtp generate --prompt - | less\n```\n"
    (piped, wrong) = commands_of(text)
    assert piped == ["generate", "--prompt", "-"]
    assert refusal(piped) is None
    assert "--no-such-option" in (refusal(wrong) or "")
