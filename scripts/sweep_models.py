"""Decode a tiny model of each type that mlx-lm has, and print the table of docs/families.md.

    .venv/bin/python scripts/sweep_models.py [TYPE ...]

A type whose outcome is another than mlx-lm's own ends the script with what differs.
"""

from __future__ import annotations

import sys
import tempfile
from itertools import groupby
from pathlib import Path

import mlx.core as mx

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.targets.every_model import NOT_RUN, model_types
from tests.targets.sweep import examine


def main(kinds: list[str]) -> None:
    mx.disable_compile()  # on a CPU a C++ compiler would make a kernel for each kind of operations that are joined
    with tempfile.TemporaryDirectory() as folder:
        rows = [examine(kind, Path(folder) / kind) for kind in kinds or model_types()]
    print("| type | equal | prefix | rollback | shares |\n| --- | --- | --- | --- | --- |")
    for outcome, alike in groupby(sorted(rows, key=lambda row: (row[1:], row.kind)), lambda row: row[1:]):
        print("|", ", ".join(f"`{row.kind}`" for row in alike), "|", " | ".join(outcome), "|")
    for kind, reason in {} if kinds else NOT_RUN.items():
        print(f"- `{kind}`: {reason}.")


if __name__ == "__main__":
    main(sys.argv[1:])
