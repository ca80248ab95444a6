"""Plants bugs, one at a time, and runs the tests that have to fail for each.

scripts/mutants                          # all of them: first the named tests on the sound tree, then each bug
scripts/mutants --list                   # what is planted where
scripts/mutants loop-ahead block-guard   # bugs whose names contain one of these words
scripts/mutants --check                  # only whether every edit applies and every named test exists

The bugs stand in scripts/planted_bugs/*.toml: the exact old text of one file, which occurs once in it, the new text,
and the tests. Exit code 0: every bug was killed.
"""

from __future__ import annotations

import argparse
import ast
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
LISTS = REPO / "scripts" / "planted_bugs"
LEFT_OUT = shutil.ignore_patterns(".git", ".venv", "__pycache__", "*.egg-info", ".*_cache", ".hypothesis", "dist")
TIMEOUT_S = 600.0
PASSED, FAILED = 0, 1  # exit codes of pytest
QUICK = ("-x", "-n", "0", "--assert=plain", "-p", "no:hypothesispytest")
"""Options for one bug: nobody reads why a test failed, and half of the time would go into that."""


@dataclass(frozen=True)
class Bug:
    """An edit that breaks the product.

    Args:
        name: unique. breaks: one sentence on what goes wrong.
        file: path below the repository. old: text that occurs once in it. new: the text in its place.
        tests: node ids without parameters, `path::function`. One of them has to fail.
    """

    name: str
    breaks: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """The result of one bug: "killed", "survived", "broken" or "timeout", in seconds, with pytest's last lines."""

    bug: Bug
    verdict: str
    seconds: float
    output: str = ""


def planted(folder: Path = LISTS) -> list[Bug]:
    """All bugs, in the order of their files.

    Raises:
        ValueError: two bugs have one name.
    """
    bugs = [
        Bug(**{**entry, "tests": tuple(entry["tests"])})
        for file in sorted(folder.glob("*.toml"))
        for entry in tomllib.loads(file.read_text(encoding="utf-8"))["bug"]
    ]
    names = [bug.name for bug in bugs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"two bugs are called {twice[0]}")
    return bugs


def problems(bugs: Iterable[Bug], root: Path = REPO) -> list[str]:
    """A line for each edit that does not apply to the tree exactly once, and for each test that does not exist."""
    found = []
    for bug in bugs:
        path = root / bug.file
        count = path.read_text(encoding="utf-8").count(bug.old) if path.is_file() else None
        if count is None:
            found.append(f"{bug.name}: there is no file {bug.file}")
        elif count != 1:
            found.append(f"{bug.name}: its text occurs {count} times in {bug.file}; expected once")
        if bug.old == bug.new:
            found.append(f"{bug.name}: the edit changes nothing")
        if not bug.tests:
            found.append(f"{bug.name}: no test is named")
        for test in bug.tests:
            file, _, function = test.partition("::")
            if function not in _tests_in(root / file):
                found.append(f"{bug.name}: there is no test {test}")
    return found


@cache
def _tests_in(file: Path) -> frozenset[str]:
    if not file.is_file():
        return frozenset()
    nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    functions = (node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return frozenset(name for name in functions if name.startswith("test_"))


def copy_tree(into: Path) -> Path:
    """A copy of the working tree without what is built."""
    tree = into / "tree"
    shutil.copytree(REPO, tree, ignore=LEFT_OUT)
    return tree


def run_tests(tree: Path, tests: Sequence[str], *options: str, timeout_s: float | None = None) -> tuple[int, str]:
    """pytest's exit code and output in a copy of the tree, whose code is imported by every process of the tests."""
    paths = os.pathsep.join([str(tree), str(tree / "tui")])
    # a changed file of the same size and second would otherwise be taken from the bytecode of the file before
    environment = {**os.environ, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, *tests]
    ran = subprocess.run(
        command, cwd=tree, env=environment, capture_output=True, text=True, timeout=timeout_s, errors="replace"
    )
    return ran.returncode, ran.stdout + ran.stderr


def killed(bug: Bug, tree: Path) -> Outcome:
    """Plant one bug in a copy, run its tests up to the first that fails, and put the file back."""
    file = tree / bug.file
    sound = file.read_text(encoding="utf-8")
    file.write_text(sound.replace(bug.old, bug.new), encoding="utf-8")
    started = time.monotonic()
    try:
        code, output = run_tests(tree, bug.tests, *QUICK, timeout_s=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return Outcome(bug, "timeout", time.monotonic() - started)
    finally:
        file.write_text(sound, encoding="utf-8")
    verdict = {PASSED: "survived", FAILED: "killed"}.get(code, "broken")
    return Outcome(bug, verdict, time.monotonic() - started, output)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="run the bugs whose names contain one of these (default: all)")
    parser.add_argument("--list", action="store_true", help="print the bugs and leave")
    parser.add_argument("--check", action="store_true", help="apply nothing; only validate edits and test names")
    parser.add_argument("--jobs", type=int, default=2, help="bugs at a time (default: 2)")
    parser.add_argument("--no-baseline", action="store_true", help="skip the named tests on the sound tree")
    parser.add_argument("--verbose", action="store_true", help="show pytest's output of bugs that are not killed")
    arguments = parser.parse_args()
    words = arguments.words
    bugs = [bug for bug in planted() if not words or any(word in bug.name for word in words)]
    if arguments.list:
        for bug in bugs:
            print(f"{bug.name:44} {bug.file:42} {bug.breaks}")
        return 0
    if wrong := problems(bugs):
        print("\n".join(wrong), file=sys.stderr)
        return 1
    if arguments.check:
        print(f"{len(bugs)} edits apply")
        return 0
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        return report(bugs, Path(folder), arguments)


def report(bugs: list[Bug], folder: Path, arguments: argparse.Namespace) -> int:
    """Run the bugs, print a line for each and a summary; 1 unless all are killed."""
    trees: queue.SimpleQueue[Path] = queue.SimpleQueue()
    for job in range(arguments.jobs):
        trees.put(copy_tree(folder / str(job)))
    if not arguments.no_baseline:
        tree, tests = trees.get(), sorted({test for bug in bugs for test in bug.tests})
        code, output = run_tests(tree, tests, "-n", str(arguments.jobs))
        trees.put(tree)
        if code != PASSED:
            print(output[-4000:], "\nThe named tests do not pass on the sound tree; nothing was planted.", sep="")
            return 1
        print(f"{len(tests)} named tests pass on the sound tree", flush=True)

    def work(bug: Bug) -> Outcome:
        tree = trees.get()
        try:
            return killed(bug, tree)
        finally:
            trees.put(tree)

    outcomes = []
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for done in as_completed([pool.submit(work, bug) for bug in bugs]):
            one = done.result()
            outcomes.append(one)
            print(f"{one.verdict:9} {one.seconds:5.1f} s  {one.bug.name}", flush=True)
            if arguments.verbose and one.verdict != "killed":
                print(one.output[-4000:], flush=True)
    alive = [one for one in outcomes if one.verdict != "killed"]
    print(f"{len(outcomes) - len(alive)} of {len(outcomes)} killed")
    for one in alive:
        print(f"{one.verdict}: {one.bug.name}: {one.bug.breaks} ({one.bug.file})")
    return 1 if alive else 0


if __name__ == "__main__":
    sys.exit(main())
