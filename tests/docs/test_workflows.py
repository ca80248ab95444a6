"""Workflows, forms and hooks are what their readers accept, and run what this repository has."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

REPO = Path(__file__).resolve().parent.parent.parent
BIN = Path(sys.executable).parent
SCHEMAS = {
    "vendor.github-workflows": ".github/workflows/*.yml",
    "vendor.github-issue-forms": ".github/ISSUE_TEMPLATE/[!c]*.yml",
    "vendor.github-issue-config": ".github/ISSUE_TEMPLATE/config.yml",
    "vendor.dependabot": ".github/dependabot.yml",
}
WORKFLOWS = sorted((REPO / ".github" / "workflows").glob("*.yml"))


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(list(map(str, command)), cwd=REPO, capture_output=True, text=True, timeout=120)


def steps(file: Path) -> list[dict[str, Any]]:
    jobs = yaml.safe_load(file.read_text())["jobs"]
    return [step for job in jobs.values() for step in job["steps"]]


@pytest.mark.parametrize("schema", SCHEMAS)
def test_files_are_what_github_reads(schema: str) -> None:
    files = sorted(REPO.glob(SCHEMAS[schema]))
    assert files
    ran = run(BIN / "check-jsonschema", "--builtin-schema", schema, *files)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_no_workflow_has_a_known_weakness() -> None:
    ran = run(BIN / "zizmor", "--offline", "--no-progress", ".github")
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_hooks_are_what_pre_commit_reads() -> None:
    ran = run(BIN / "pre-commit", "validate-config")
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_steps_are_shell_and_run_what_is_here(file: Path) -> None:
    scripts = [step["run"] for step in steps(file) if "run" in step]
    assert scripts
    for script in scripts:
        plain = re.sub(r"\$\{\{.*?\}\}", "x", script)
        assert subprocess.run(["bash", "-n"], input=plain, text=True).returncode == 0, script
        for target in re.findall(r"\bmake ([a-z-]+)", script):
            assert run("make", "--dry-run", target).returncode == 0, f"there is no make {target}"
        for name in re.findall(r"(?<![\w/.])(\.ci/\w+|scripts/\w+)", script):
            assert os.access(REPO / name, os.X_OK), f"{name} cannot be run"


def test_the_checks_run_on_linux_and_on_apple_silicon() -> None:
    (job,) = yaml.safe_load((REPO / ".github/workflows/check.yml").read_text())["jobs"].values()
    machines = [one["os"] for one in job["strategy"]["matrix"]["include"]]
    assert any(machine.startswith("ubuntu") for machine in machines)
    arm64 = [machine for machine in machines if re.fullmatch(r"macos-(1[4-9]|2\d|latest)", machine)]
    assert arm64, "macos-13 and older, and names that end in -large or -intel, are not arm64"
    shown, checked = (
        next(i for i, step in enumerate(job["steps"]) if part in step.get("run", ""))
        for part in ("default_device()", ".ci/run")
    )
    assert shown < checked


def test_the_gpus_bits_are_shown_for_every_kind_of_kernels() -> None:
    (job,) = yaml.safe_load((REPO / ".github/workflows/metal.yml").read_text())["jobs"].values()
    kinds = {"g13g", "g13s", "g14g", "g14d", "g15g", "g15s", "g15d", "g16s"}
    assert set(job["strategy"]["matrix"]["arch"]) == {f"applegpu_{kind}" for kind in kinds}
    assert job["env"]["MLX_METAL_GPU_ARCH"] == "${{ matrix.arch }}"
    order = ["device_info()", "-m metal", "mlxmtp doctor --device gpu", "scripts/demo --device gpu"]
    said = "\n".join(step.get("run", "") for step in job["steps"])
    assert sorted(order, key=said.index) == order
    assert job["steps"][-1]["with"]["path"] == "findings/", "what was found is kept, also after a failure"


def test_a_release_is_tried_before_it_is_published() -> None:
    jobs = yaml.safe_load((REPO / ".github/workflows/release.yml").read_text())["jobs"]
    publish = jobs["publish"]
    assert publish["needs"] == "build"
    assert publish["permissions"] == {"id-token": "write"}
    assert publish["environment"]["name"]
    said = "\n".join(step.get("run", "") for step in jobs["build"]["steps"])
    assert said.index("GITHUB_REF_NAME") < said.index("mlxmtp generate")
    assert "CHANGELOG.md" in said


def test_reports_of_faults_bring_what_doctor_says() -> None:
    for name in ("bug", "head_family"):
        form = yaml.safe_load((REPO / f".github/ISSUE_TEMPLATE/{name}.yml").read_text())
        asked = [field for field in form["body"] if "mlxmtp doctor --json" in field["attributes"].get("label", "")]
        assert [field["validations"]["required"] for field in asked] == [True], name
