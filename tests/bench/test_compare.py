"""The comparison of two reports."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from mlxmtp import OptionError
from mlxmtp.bench import compare
from mlxmtp.bench.summary import summarise
from tests.bench.conftest import HEAD, cost, record

Row = dict[str, Any]


def test_changes_beyond_the_spread_of_both(report: Row):
    faster = summarise(HEAD, [record(scale=1.15), record(repeat=1, scale=1.25)])
    found = compare.compare(report, faster)
    plain = next(row for row in found["arms"] if row["arm"] == "plain")
    assert plain["where"] == "code at 0"
    assert plain["rate"]["change"] == pytest.approx(1.2 / 1.1 - 1)
    assert not plain["rate"]["apart"], "1.0 to 1.2, and 1.15 to 1.25"
    for runs, apart in ((2, False), (3, True)):  # of fewer, nobody knows the spread
        much = compare.compare(report, summarise(HEAD, [record(repeat=i, scale=2) for i in range(runs)]))
        assert all(row["rate"]["apart"] is apart for row in much["arms"])
        assert ("+81.8%*" in compare.as_text(much)) is apart


def test_what_only_one_has(report: Row):
    found = compare.compare(report, summarise(HEAD, [record(), record(number=1, temperature=0.3)]))
    assert set(found["only_before"]) == {"code at 0.7", "context 1024", "context 2048"}
    assert found["only_after"] == {"code at 0.3": ["mlx-lm", "plain", "depth 1", "auto"]}
    assert "only in the first: code at 0.7 (mlx-lm, plain, depth 1, auto)" in compare.as_text(found)


def test_conditions_that_differ_are_named(report: Row):
    other = deepcopy(report)
    other["versions"]["mlx"] = "2.0"
    other["model"]["head"] = None
    other["prompts"] = {"code": 3, "digest": "0f"}
    other |= {"complete": False, "measured": 4, "planned": 9}
    found = compare.compare(report, other)
    assert found["conditions"] == {
        "measured": ("12 of 12", "4 of 9"),
        "model head": ("qwen-mtp", None),
        "versions mlx": ("1.0", "2.0"),
        "prompts code": (1, 3),
        "prompts digest": ("ab", "0f"),
    }
    assert "versions mlx: 1.0 -> 2.0" in compare.as_text(found)


def test_costs_at_the_contexts_of_both(report: Row):
    found = compare.compare(report, summarise(HEAD, [record(cost=cost(50, 0.008)), record("context", 0, 512)]))
    assert [cost["where"] for cost in found["costs"]] == ["workloads"]
    assert "after  8.00 ms a row" in compare.as_text(found)


def test_an_arm_without_a_rate(report: Row):
    short = deepcopy(report)
    short["speed"][2]["rate"] = short["speed"][2]["ratio"] = None
    found = compare.compare(report, short)
    assert found["arms"][2]["rate"] is None
    compare.as_text(found)
    compare.as_html(found)


def test_nothing_in_common(report: Row):
    found = compare.compare(report, summarise(HEAD, []))
    assert "no run in common" in compare.as_text(found)
    ElementTree.fromstring(compare.as_html(found).removeprefix("<!doctype html>\n"))


def test_the_page_is_well_formed(report: Row):
    html = compare.as_html(json.loads(json.dumps(compare.compare(report, report))))
    root = ElementTree.fromstring(html.removeprefix("<!doctype html>\n"))
    assert len(root.findall(".//{http://www.w3.org/2000/svg}svg")) == 2


def test_reports_are_read_from_files_and_folders(tmp_path: Path, report: Row):
    (tmp_path / "report.json").write_text(json.dumps(report))
    assert (
        compare.load_report(tmp_path) == compare.load_report(tmp_path / "report.json") == json.loads(json.dumps(report))
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file"),
        ("{", "not JSON"),
        ("[]", "not a report"),
        ('{"schema": 1}', "not a report"),
        ('{"schema": 2, "speed": [], "contexts": [], "costs": [], "settings": {}}', "schema 2; expected 1"),
    ],
)
def test_what_is_no_report(tmp_path: Path, content: str | None, said: str):
    file = tmp_path / "report.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(OptionError, match=said):
        compare.load_report(tmp_path)
