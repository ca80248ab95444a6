"""Every document, section and file that the code or another document cites is in this repository."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.markdown import anchors, documents, headings, links

REPO = Path(__file__).resolve().parent.parent.parent
ROOMS = ("mlxmtp", "tui", "scripts", "tests", "examples")
ROOTS = (".", "mlxmtp", "tui", "tui/mlxmtp_tui", "tests", "scripts")
"""Folders that a cited file may be relative to, beside the folder of the file that cites it."""
OUTSIDE = {"README_WEIGHTS.md", "configuration.py"}
"""Files of other projects, cited by the name that they have there, besides those of HEADS."""
HEADS = ("_mtp.py", "/mtp.py")
"""Ends of the names of vLLM's and SGLang's modules of heads."""

_DOCUMENT = re.compile(r"(?<![\w/.-])([\w./-]*\w\.md)(#[\w-]+)?(?:, (?:\"([^\"]+)\"|([A-Z][\w ,'-]*)))?")
# a possessive before it ("vLLM's `x.py`") says that it is another project's
_MODULE = re.compile(r"(?<![\w/.-])(?<!' `)(?<!'s `)((?:[\w-]+/)*\w+\.(?:py|metal|yml|toml))\b")


def prose_of(source: str) -> Iterator[str]:
    """The docstrings (of constants too) and the comments of a module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield " ".join(node.value.value.split())
    comment = ""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comment += " " + token.string.lstrip("# ")
        elif token.type != tokenize.NL and comment:
            yield comment
            comment = ""


def fault_of(document: str, anchor: str, section: str, at: Path) -> str | None:
    """What is wrong with a citation of a Markdown document in the file `at`, if anything is."""
    if document in OUTSIDE:
        return None
    if ".." in Path(document).parts:
        return "leads out of the repository"
    found = next((folder / document for folder in (REPO, at.parent) if (folder / document).is_file()), None)
    if found is None:
        return "is not in the repository"
    text = found.read_text()
    if anchor and anchor[1:] not in anchors(text):
        return f"has no section {anchor}"
    if section and not any(section.lower().startswith(heading.lower()) for heading in headings(text)):
        return f"has no section {section!r}"
    return None


def module_exists(cited: str, at: Path) -> bool:
    if Path(cited).name in OUTSIDE or cited.endswith(HEADS):
        return True
    return any((folder / cited).is_file() for folder in (at.parent, *(REPO / root for root in ROOTS)))


def sources() -> list[Path]:
    return sorted(file for room in ROOMS for file in (REPO / room).rglob("*.py") if "goldens" not in file.parts)


@pytest.fixture(scope="module")
def prose() -> list[tuple[Path, str]]:
    return [(file, text) for file in sources() for text in prose_of(file.read_text())]


def test_documents_and_sections_that_code_cites_exist(prose: list[tuple[Path, str]]) -> None:
    wrong = []
    for file, text in prose:
        for document, anchor, quoted, named in _DOCUMENT.findall(text):
            fault = fault_of(document, anchor, quoted or named, file)
            if fault:
                wrong.append(f"{file.relative_to(REPO)}: {document}{anchor} {fault}")
    assert not wrong, "\n".join(wrong)


def test_modules_that_code_cites_exist(prose: list[tuple[Path, str]]) -> None:
    wrong = [
        f"{file.relative_to(REPO)}: {cited}"
        for file, text in prose
        for cited in _MODULE.findall(text)
        if file.parts[-2:-1] != ("demo_training",) and not module_exists(cited, file)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("document", documents(REPO), ids=lambda file: str(file.relative_to(REPO)))
def test_links_of_documents_lead_somewhere(document: Path) -> None:
    wrong = []
    for link in links(document.read_text()):
        if re.match(r"[a-z]+:", link):
            continue  # another site
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        if not target.is_relative_to(REPO) or not target.exists():
            wrong.append(f"{link}: there is no such file")
        elif anchor and anchor not in anchors(target.read_text()):
            wrong.append(f"{link}: there is no such section")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("document", documents(REPO), ids=lambda file: str(file.relative_to(REPO)))
def test_files_that_documents_name_exist(document: Path) -> None:
    named = re.findall(r"`((?:mlxmtp|tui|scripts|tests|docs|examples|\.github|\.ci)/[\w./-]+)`", document.read_text())
    folders = (REPO, document.parent)
    missing = [name for name in named if not any((folder / name).exists() for folder in folders)]
    wrong = [name for name in missing if "acme" not in name]  # CONTRIBUTING's example
    assert not wrong, "\n".join(wrong)


def test_a_citation_of_what_is_not_there_is_found(tmp_path: Path) -> None:
    """The reader of citations itself: it finds each kind of fault, and passes what is right."""
    (REPO_DOC,) = (doc for doc in documents(REPO) if doc.name == "families.md")
    heading = headings(REPO_DOC.read_text())[1]
    at = REPO / "mlxmtp" / "errors.py"
    assert fault_of("docs/families.md", "", "", at) is None
    assert fault_of("docs/families.md", "", heading, at) is None
    assert fault_of("docs/families.md", "", "No such section", at) == "has no section 'No such section'"
    assert fault_of("docs/families.md", "#no-such-section", "", at) == "has no section #no-such-section"
    assert fault_of("docs/nothing.md", "", "", at) == "is not in the repository"
    assert fault_of("../shared/decoding.md", "", "", at) == "leads out of the repository"
    found = list(prose_of('"""A (docs/x.md, "Blocks of two")."""\nX = 1  # as docs/y.md#z says\n"""Of docs/w.md."""\n'))
    cited = {match for text in found for match in _DOCUMENT.findall(text)}
    assert cited == {
        ("docs/x.md", "", "Blocks of two", ""),
        ("docs/y.md", "#z", "", ""),
        ("docs/w.md", "", "", ""),
    }
    assert _DOCUMENT.findall("(docs/x.md, Verification)") == [("docs/x.md", "", "", "Verification")]
    assert module_exists("decoding/verify.py", at)
    assert not module_exists("decoding/nothing.py", at)
