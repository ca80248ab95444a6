"""Each example runs as its docstring says, on the bundled model; so do the blocks of docs/python.md."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.markdown import code_blocks
from tests.server.process import ServerProcess
from tests.worker.driving import SMALL_MODEL

pytestmark = pytest.mark.process

REPO = Path(__file__).resolve().parent.parent.parent
EXAMPLES = REPO / "examples"


def run(name: str, *arguments: str) -> str:
    """What an example prints."""
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    ran = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.mark.exhaustive
def test_stream() -> None:
    text = run("stream.py", "Hello, how are you?")
    found = re.search(r"(\d+) tokens in (\d+) passes", text)
    assert found
    assert int(found[2]) < int(found[1]), "drafts were accepted"
    assert text.index("I am doing well") < found.start()


@pytest.mark.exhaustive  # tests/server has the OpenAI client's calls of tools by default
def test_tools_by_the_openai_client(tmp_path: Path) -> None:
    with ServerProcess(tmp_path) as server:
        text = run("tools_openai.py", server.url)
    assert 'get_menu_items({"query": "latte"}) -> [{"id": "menu_7", "name": "latte"}]' in text
    assert re.search(r"^order    1 x ", text, re.MULTILINE)
    cached = [int(count) for count in re.findall(r"(\d+) tokens from the cache", text)]
    assert cached[0] == 0
    assert min(cached[1:]) > 200, "later turns read what is new"


@pytest.mark.exhaustive  # four texts of the demo model
def test_a_drafter_of_ones_own() -> None:
    text = run("own_drafter.py")  # it compares with plain decoding itself
    passes = [int(count) for count in re.findall(r"96 tokens in (\d+) passes", text)]
    assert len(passes) == 2
    assert max(passes) < 96, "drafts were accepted"


def test_a_family_of_ones_own() -> None:
    text = run("own_family.py")  # it compares with plain decoding itself
    found = re.search(r"my-mtp: (\d\.\d\d) tokens a round", text)
    assert found
    assert float(found[1]) > 1.5, "drafts were accepted"


def test_every_example_is_run_by_a_test() -> None:
    tested = set(re.findall(r'run\("(\w+\.py)"', Path(__file__).read_text()))
    assert {file.name for file in EXAMPLES.glob("*.py")} == tested


def test_the_blocks_of_the_python_document(capsys: pytest.CaptureFixture[str]) -> None:
    """With a small model, which is soon measured."""
    names: dict[str, object] = {}
    blocks = code_blocks((REPO / "docs" / "python.md").read_text(), "python")
    assert len(blocks) >= 4
    for block in blocks:
        block = re.sub(r"max_tokens=\d+", "max_tokens=8", block).replace("load()", f'load("{SMALL_MODEL}")')
        exec(compile(block, "docs/python.md", "exec"), names)
    assert "nextn" in capsys.readouterr().out
