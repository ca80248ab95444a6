"""MLX's switch of the GPU's name, as one more way of "strict" on M3 and M4: kernels that M1 has, for few rows too.

With the switch MLX's own arithmetic should have one-row bits there (docs/exactness.md). `mlxmtp doctor` measures it in
a process that is started with it, and keeps it for a model where it is exact and faster. The worker's process sets it
before it imports MLX, and measures by itself what then holds: what is kept here promises nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlxmtp import machine
from mlxmtp.exactness.store import FORMAT, read_json, write_json
from mlxmtp.files import data_folder
from mlxmtp.machine import GPU_SWITCH

PROGRAM = (sys.executable, "-P", "-m", "mlxmtp")
TIMEOUT_S = 3600.0
"""Seconds that the doctor of the other process may take."""
FASTER = 0.95
"""A pass with the switch must take this part of the time without it, or less."""
_NAME = re.compile(r"applegpu_g13[a-z]")


def measured_with(switch: str, arguments: Sequence[str], program: Sequence[str] = PROGRAM) -> dict[str, Any]:
    """Return the report of a doctor in a process that is started with the switch.

    Raises:
        OSError, ValueError, subprocess.SubprocessError: there is none.
    """
    run = subprocess.run(
        [*program, "doctor", "--json", *arguments],
        env={**os.environ, GPU_SWITCH: switch},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=True,
    )
    report = json.loads(run.stdout)
    if not isinstance(report, dict):
        raise ValueError("its report is no JSON object")
    return report


def is_better(with_switch: dict[str, Any], strict: dict[str, Any]) -> bool:
    """Return whether MLX's own arithmetic with the switch is exact and faster than "strict" without it.

    Args:
        with_switch: the result of "fast", as in the doctor's report.
        strict: the result of "strict", likewise.
    """
    found, known = with_switch["verdict"], strict["verdict"]
    if found["promise"] != "identical":
        return False
    if known["promise"] == "distribution":
        return True
    enough = found["rows"] >= min(4, known["rows"])
    return bool(enough and 0 < with_switch["pass_seconds"] <= FASTER * strict["pass_seconds"])


def keep_switch(model: str | None, switch: str | None) -> None:
    """Keep the switch for a model on this machine, or with None that there is none."""
    write_json(_file(model), switch)


def kept_switch(model: str | None) -> str | None:
    """Return the switch that was kept for a model on this machine; None: none, or the file is damaged."""
    if not (data_folder() / "switch").is_dir():
        return None
    switch = read_json(_file(model))
    return switch if isinstance(switch, str) and _NAME.fullmatch(switch) else None


def _file(model: str | None) -> Path:
    """Return the file of a model's switch; its name is known without MLX, which must not be imported yet."""
    local = Path(model or "demo").expanduser()
    facts = {
        "format": FORMAT,
        "machine": machine.platform_facts(),
        "versions": machine.versions(),
        "model": str(local.resolve()) if local.exists() else model or "demo",
    }
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
    return data_folder() / "switch" / f"{key}.json"
