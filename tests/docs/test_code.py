"""The Python in documents is Python, and imports what there is."""

import ast
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from tests.docs.markdown import code_blocks, documents

REPO = Path(__file__).resolve().parent.parent.parent
OURS = ("mlxmtp", "tests")
WITH_CODE = [document for document in documents(REPO) if code_blocks(document.read_text(), "python")]


def imports_of(block: str) -> Iterator[tuple[str, str]]:
    """The module and the name of each `from ... import ...` of this repository."""
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in OURS:
            yield from ((node.module, alias.name) for alias in node.names)


@pytest.mark.parametrize("document", WITH_CODE, ids=lambda file: str(file.relative_to(REPO)))
def test_blocks_import_what_there_is(document: Path) -> None:
    found = [one for block in code_blocks(document.read_text(), "python") for one in imports_of(block)]
    wrong = [f"{module}.{name}" for module, name in found if not hasattr(import_module(module), name)]
    assert not wrong


def test_the_walk_throughs_import_what_they_use() -> None:
    """A block of CONTRIBUTING names what a newcomer has to find."""
    blocks = code_blocks((REPO / "CONTRIBUTING.md").read_text(), "python")
    imported = {name for block in blocks for _, name in imports_of(block)}
    assert {"Family", "build_layer", "LayerKind", "ApiAdapter", "StreamWriter"} <= imported
