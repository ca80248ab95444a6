"""The page and its plots: well-formed, self-contained, drawn to scale."""

from __future__ import annotations

import json
import re
from typing import Any
from xml.etree import ElementTree

import pytest

from mlxmtp.bench import page, svg
from mlxmtp.bench.summary import summarise
from mlxmtp.bench.svg import PlotAxis, PlotLine, PlotPoint, PlotValue
from tests.bench.conftest import HEAD, record

Row = dict[str, Any]
SVG = "{http://www.w3.org/2000/svg}"


def parsed(html: str) -> ElementTree.Element:
    """Parse the page, which is XML without its first line."""
    return ElementTree.fromstring(html.removeprefix("<!doctype html>\n"))


def test_the_page_is_well_formed_and_needs_nothing_else(report: Row):
    html = page.as_html(report)
    root = parsed(html)
    assert not root.findall(".//script")
    addresses = [value for element in root.iter() for name, value in element.items() if name in ("href", "src")]
    assert addresses == []
    assert set(re.findall(r"https?://[^\s\"<]+", html)) == {"http://www.w3.org/2000/svg"}
    assert "url(" not in html
    assert "@import" not in html
    assert "prefers-color-scheme: dark" in html


def test_every_plot_has_labelled_axes(report: Row):
    plots = parsed(page.as_html(report)).findall(f".//{SVG}svg")
    labels = [plot.get("aria-label", "") for plot in plots]
    assert labels == [
        "times mlx-lm's plain decoding: plain, depth 1, auto",
        "times mlx-lm's plain decoding: plain, depth 1, auto",
        "share that stood, drafting 1 against depth of the draft",
        "time, in passes over one row against rows of a pass",
        "tok/s against tokens of context",
        "seconds to the first token against tokens of context",
        "prefill tok/s against tokens of context",
        "peak memory, GB against tokens of context",
    ]
    for plot, label in zip(plots, labels, strict=True):
        words = [text.text for text in plot.iter(f"{SVG}text")]
        assert label.split(" against ")[0].split(": ")[0] in words


def test_text_from_outside_is_escaped(report: Row):
    html = page.as_html(report | {"command": "mlxmtp bench --out '<b>&'", "notes": ["<script>alert(1)</script>"]})
    parsed(html)
    assert "<script" not in html
    assert "A &amp; B" in html
    assert "System &lt;1&gt;" in html


def test_the_page_shows_nothing_that_the_json_has_not(report: Row):
    """The JSON, written and parsed, gives the same page."""
    assert page.as_html(json.loads(json.dumps(report))) == page.as_html(report)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_partial_reports_are_pages_too(records: list[Row], count: int):
    html = page.as_html(summarise(HEAD, records[:count], planned=len(records)))
    parsed(html)
    assert f"partial: {count} of {len(records)} measurements" in html


def test_without_a_head_there_are_no_drafts_to_plot():
    plain = record()
    plain["runs"] = {name: plain["runs"][name] for name in ("mlx-lm", "plain")}
    html = page.as_html(summarise(HEAD, [plain]))
    parsed(html)
    assert "Acceptance by depth" not in html


def test_bars_are_drawn_to_scale():
    """The highest tick is 200, so a bar of 100 is half as high as the axis."""
    drawn = ElementTree.fromstring(svg.bars(["a"], ["x", "y"], [[PlotValue(100, 50, 200, "t<"), None]], "tok/s"))
    (rect,) = drawn.iter(f"{SVG}rect")
    height = float(drawn.get("height", "")) - svg.TOP - svg.BOTTOM
    assert float(rect.get("height", "")) == pytest.approx(height / 2, abs=0.1)
    assert float(rect.get("y", "")) == pytest.approx(svg.TOP + height / 2, abs=0.1)
    whisker = next(path for path in drawn.iter(f"{SVG}path") if path.get("class") == "whisker")
    low, high = map(float, re.match(r"M[\d.]+,([\d.]+)V([\d.]+)", whisker.get("d", "")).groups())
    assert (low, high) == pytest.approx((svg.TOP + height * 0.75, svg.TOP), abs=0.1)
    assert [title.text for title in drawn.iter(f"{SVG}title")] == ["t<"]


def test_lines_are_drawn_to_scale():
    points = tuple(PlotPoint(x, PlotValue(y, y, y)) for x, y in ((1024, 10.0), (2048, 20.0), (4096, 40.0)))
    drawn = ElementTree.fromstring(svg.lines([PlotLine("l", points)], "x", "y", log_x=True))
    places = [(float(dot.get("cx", "")), float(dot.get("cy", ""))) for dot in drawn.iter(f"{SVG}circle")]
    assert places[1][0] == pytest.approx((places[0][0] + places[2][0]) / 2, abs=0.1), "twice as long, one step"
    bottom = float(drawn.get("height", "")) - svg.BOTTOM
    heights = [bottom - y for _, y in places]
    assert heights[2] == pytest.approx(bottom - svg.TOP, abs=0.1)
    assert heights[1] == pytest.approx(2 * heights[0], abs=0.2)


def test_nothing_to_plot_is_no_plot():
    assert svg.bars(["a"], ["x"], [[None]], "y") == ""
    assert svg.lines([PlotLine("empty", ())], "x", "y") == ""


def test_one_point_and_equal_values_can_be_drawn():
    ElementTree.fromstring(svg.lines([PlotLine("l", (PlotPoint(1, PlotValue(0, 0, 0)),))], "x", "y"))
    ElementTree.fromstring(svg.lines([PlotLine("l", (PlotPoint(1024, PlotValue(3, 3, 3)),))], "x", "y", log_x=True))


@pytest.mark.parametrize(
    ("high", "ticks"),
    [
        (1.7, [0, 0.5, 1.0, 1.5, 2.0]),
        (5, [0, 1, 2, 3, 4, 5]),
        (0.1, [0, 0.02, 0.04, 0.06, 0.08, 0.1]),
        (0, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (873, [0, 200, 400, 600, 800, 1000]),
    ],
)
def test_ticks_are_round_and_reach_over_the_highest(high: float, ticks: list[float]):
    assert svg.nice_ticks(0, high) == pytest.approx(ticks)


def test_labels():
    assert [svg.short(value) for value in (1024, 32768, 0.25, 1500, 12.0)] == ["1k", "32k", "0.25", "1,500", "12"]


def test_an_axis_maps_its_ends():
    axis = PlotAxis(1, 8, 100, 400, log=True)
    assert [axis.at(value) for value in (1, 2, 8)] == pytest.approx([100, 200, 400])
