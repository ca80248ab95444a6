"""The drawing of the rooms shows the rooms that there are, in the order of the import contract."""

import re
import tomllib
import xml.etree.ElementTree as ET
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent.parent
SVG = "{http://www.w3.org/2000/svg}"


def layers() -> list[list[str]]:
    """The rooms of each layer of the contract, the highest first."""
    contracts = tomllib.loads((REPO / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (found,) = (contract["layers"] for contract in contracts if contract["type"] == "layers")
    return [[name.removeprefix("mlxmtp.") for name in re.findall(r"[\w.]+", layer)] for layer in found]


def heights() -> dict[str, float]:
    """Where each room is drawn, from the top."""
    root = ET.parse(REPO / "docs" / "rooms.svg").getroot()
    names = [text for text in root.iter(f"{SVG}text") if (text.get("class") or "").startswith("m ")]
    return {text.text or "": float(text.get("y", "nan")) for text in names}


def test_every_layer_is_drawn_below_the_one_that_imports_it() -> None:
    drawn = heights()
    assert set(drawn) == {room for layer in layers() for room in layer}
    rows = [{drawn[room] for room in layer} for layer in layers()]
    assert all(len(row) == 1 for row in rows), "the rooms of a layer are side by side"
    tops = [row.pop() for row in rows]
    assert tops == sorted(tops)


def test_every_package_is_in_the_table_of_rooms() -> None:
    table = (REPO / "docs" / "architecture.md").read_text()
    rooms = [file.parent for file in (REPO / "mlxmtp").glob("*/__init__.py")]
    assert len(rooms) > 8
    assert not [room.name for room in rooms if f"| `mlxmtp/{room.name}` |" not in table]


def test_drawings_have_words_for_who_does_not_see_them() -> None:
    for name in ("rooms", "token"):
        root = ET.parse(REPO / "docs" / f"{name}.svg").getroot()
        assert root.get("role") == "img"
        assert all((root.findtext(f"{SVG}{tag}") or "").strip() for tag in ("title", "desc"))
        style = root.findtext(f"{SVG}style") or ""
        assert "prefers-color-scheme:dark" in style
