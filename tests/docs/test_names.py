"""One class name has one owner in the whole tree."""

import ast
from collections import defaultdict
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent.parent


def owners_of(files: list[Path]) -> dict[str, list[str]]:
    """The files that define each public class, by its name."""
    owners: dict[str, list[str]] = defaultdict(list)
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                owners[node.name].append(str(file))
    return owners


def test_no_public_class_name_is_defined_twice() -> None:
    owners = owners_of(sorted(file for room in ("mlxmtp", "tui") for file in (REPO / room).rglob("*.py")))
    assert "Engine" in owners
    twice = {name: files for name, files in owners.items() if len(files) > 1}
    assert not twice


def test_a_name_with_two_owners_is_found(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text("class Turn: ...\nclass _Hidden: ...\n")
    (tmp_path / "two.py").write_text("class Outer:\n    class Turn: ...\nclass _Hidden: ...\n")
    owners = owners_of(sorted(tmp_path.glob("*.py")))
    assert {name: len(files) for name, files in owners.items()} == {"Turn": 2, "Outer": 1}
