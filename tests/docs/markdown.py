"""What the tests of the documents read from Markdown: headings with their anchors, links, and blocks of code."""

import re
from pathlib import Path

_FENCE = re.compile(r"^(```|~~~)(\w*)[^\n]*\n(.*?)^\1\s*$", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^#{1,6} +(.+?) *#*$", re.MULTILINE)
_LINK = re.compile(r"!?\[(?:[^\]\[]|\[[^\]]*\])*\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
_HTML = re.compile(r"(?:src|srcset|href)=\"([^\"]+)\"")
_SPAN = re.compile(r"`[^`\n]+`")


def without_code(text: str) -> str:
    """A document's text with its fenced blocks left out."""
    return _FENCE.sub("", text)


def headings(text: str) -> list[str]:
    """The headings of a document, without their marks."""
    return [heading.replace("`", "") for heading in _HEADING.findall(without_code(text))]


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives a document's headings."""
    found: set[str] = set()
    for heading in headings(text):
        base = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        number, anchor = 0, base
        while anchor in found:
            number += 1
            anchor = f"{base}-{number}"
        found.add(anchor)
    return found


def links(text: str) -> list[str]:
    """The targets of a document's links and pictures."""
    prose = _SPAN.sub("", without_code(text))
    return [*_LINK.findall(prose), *_HTML.findall(prose)]


def code_blocks(text: str, *languages: str) -> list[str]:
    """The fenced blocks in one of these languages."""
    return [block for _, language, block in _FENCE.findall(text) if language in languages]


def documents(repo: Path) -> list[Path]:
    """Every Markdown document that people read: in the root, in docs/, .github/ and examples/, and of the tests."""
    found = [*repo.glob("*.md"), *repo.glob("docs/**/*.md"), *repo.glob(".github/**/*.md"), *repo.glob("examples/*.md")]
    return sorted({*found, *repo.glob("tests/README.md")})
