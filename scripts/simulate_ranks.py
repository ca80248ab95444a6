"""Tokens a second of Macs that share a model, by ranks, link and depth: a simulation on paper, not a measurement.

    .venv/bin/python scripts/simulate_ranks.py [--plot docs/several-macs.svg]

    pass(m) = C(m) · layers / ranks / bandwidth + output / bandwidth + messages · message(m)
    draft   = (head + output) / bandwidth
    rate    = tokens a round / (pass(depth + 1) + depth · draft)

All inputs are constants below, each with its source. What is left out: attention's keys, the host's own time, prompts.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from mlxmtp.bench.svg import PlotLine, PlotPoint, PlotValue, lines

LAYERS = 64
HIDDEN = 5120
VOCABULARY = 248_320
"""Sizes of a dense model of 27 billion weights, as Qwen3.6-27B."""
BYTES_A_WEIGHT = 4.5 / 8
"""4 bits in groups of 64, each with a scale and a bias of 16 bits."""
LAYERS_BYTES = (27e9 - 2 * VOCABULARY * HIDDEN) * BYTES_A_WEIGHT
OUTPUT_BYTES = VOCABULARY * HIDDEN * BYTES_A_WEIGHT
"""The output matrix, which every rank reads whole."""
HEAD_BYTES = LAYERS_BYTES / LAYERS + 2 * HIDDEN * HIDDEN * BYTES_A_WEIGHT
"""One layer, and the matrix that joins embedding and hidden state: the head, which every rank reads whole."""
BANDWIDTH = 0.7 * 819e9
"""Bytes a second of an M3 Ultra: Apple states 819 GB/s; the share that decoding reaches is assumed."""
PASS_COST = (1, 1.07, 1.15, 1.28, 1.58, 1.87, 2.17, 2.47)
"""C(1) to C(8) of a 27B model in 4 bits (mlxcel #1182, in docs/depth.md), of another chip, an M5 Max."""
ACCEPTANCE = 0.8
"""Of each draft after accepted ones: 80.3 % of first drafts (vllm-mlx #660, in docs/families.md). Deeper: assumed."""
MESSAGES = 2 * LAYERS
"""All-reduces of a pass: after attention and after the MLP of each layer, as `tests/ranks` counts them."""
SYNC_S = 20e-6
"""Seconds for which GPU and CPU wait for each other at each message. Assumed."""
DEPTHS = range(len(PASS_COST))


@dataclass(frozen=True)
class Link:
    """A connection of two machines.

    Args:
        latency_s: of one message, one way. bandwidth: in bytes a second.
        direct: each rank sends to all others at once (JACCL's mesh); else by a ring, in 2 · (ranks - 1) steps.
    """

    name: str
    latency_s: float
    bandwidth: float
    direct: bool = False


LINKS = (
    Link("RDMA over Thunderbolt 5 (jaccl)", 10e-6, 7e9, direct=True),
    Link("TCP over Thunderbolt (ring)", 150e-6, 4e9),
    Link("TCP over 10 Gb/s Ethernet (ring)", 200e-6, 1.1e9),
    Link("Wi-Fi (ring)", 3.75e-3, 0.1e9),
)
"""RDMA: users report 5 to 9 µs, J. Geerling "under 50 µs", and 300 µs there and back by TCP (jeffgeerling.com, December
2025). Wi-Fi: 7.5 ms there and back (exo #2295). Bandwidth of RDMA: 7.6 GB/s (pytorch #189856). The rest is assumed."""


def message_s(link: Link, ranks: int, rows: int) -> float:
    """Return the seconds of one all-reduce of `rows` hidden states in 16 bits."""
    nbytes = 2 * HIDDEN * rows
    if link.direct:
        return SYNC_S + link.latency_s + (ranks - 1) * nbytes / link.bandwidth
    return SYNC_S + 2 * (ranks - 1) * (link.latency_s + nbytes / ranks / link.bandwidth)


def tokens_a_round(depth: int) -> float:
    """Return the mean number of tokens of a round."""
    return sum(ACCEPTANCE**accepted for accepted in range(depth + 1))


def tokens_a_second(link: Link | None, ranks: int, depth: int) -> float:
    """Return the rate; without a link, of one machine."""
    rows = depth + 1
    seconds = (PASS_COST[depth] * LAYERS_BYTES / ranks + OUTPUT_BYTES + depth * (HEAD_BYTES + OUTPUT_BYTES)) / BANDWIDTH
    if link:
        seconds += MESSAGES * message_s(link, ranks, rows)
    return tokens_a_round(depth) / seconds


def arms() -> list[tuple[str, Link | None, int]]:
    """Return the name, link and ranks of each row of the table."""
    several: list[tuple[str, Link | None, int]] = [
        (f"{ranks} Macs, {link.name}", link, ranks) for link in LINKS for ranks in (2, 4)
    ]
    return [("1 Mac", None, 1), *several]


def table() -> str:
    """Return a table in Markdown: tokens a second by depth; messages a token without drafts and at the best depth."""
    head = ["", *(f"depth {depth}" for depth in DEPTHS), "best / plain", "messages a token"]
    rows = [head, ["---"] * len(head)]
    for name, link, ranks in arms():
        rates = [tokens_a_second(link, ranks, depth) for depth in DEPTHS]
        best = max(DEPTHS, key=rates.__getitem__)
        sent = f"{MESSAGES} → {MESSAGES / tokens_a_round(best):.0f}" if link else "0"
        rows.append([name, *(f"{rate:.1f}" for rate in rates), f"{rates[best] / rates[0]:.2f}", sent])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


COLOURS = ("#333333", "#1f77b4", "#6baed6", "#d95f02", "#fdae6b", "#2ca02c", "#98df8a")
STYLE = (
    "svg{background:#fff}text{font:12px system-ui,sans-serif;fill:#222}.grid{stroke:#ddd}.axis{stroke:#888}"
    ".line{fill:none;stroke-width:2}.band{stroke:none;opacity:0}"
)
TITLE = "A simulation on paper, not a measurement: 27B in 4 bits, M3 Ultra"
ROW, TOP = 18, 30
"""Pixels of a row of the legend, and of the title."""


def plot() -> str:
    """Return the rates as one SVG with its title and legend. Wi-Fi is left out: its lines lie on the axis."""
    shown = [arm for arm in arms() if not arm[1] or arm[1] is not LINKS[-1]]
    series = []
    for name, link, ranks in shown:
        rates = [(depth, tokens_a_second(link, ranks, depth)) for depth in DEPTHS]
        values = (PlotPoint(x, PlotValue(y, y, y, f"{name}, depth {x}: {y:.1f}")) for x, y in rates)
        series.append(PlotLine(name, tuple(values)))
    drawn = lines(series, "drafts a round", "tokens a second")
    colours = "".join(f".s{i}{{stroke:{c};fill:{c}}}" for i, c in enumerate(COLOURS))
    width, plot_height = 620, 320
    height = TOP + plot_height + ROW * len(shown) + 8
    legend = "".join(
        f'<g class="s{i}"><path class="line" d="M62,{y - 4}h24"/></g><text x="94" y="{y}">{name}</text>'
        for i, (name, _, _) in enumerate(shown)
        for y in [TOP + plot_height + ROW * (i + 1)]
    )
    label = "Simulated tokens a second by drafts a round, for one, two and four Macs and several links"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{label}" '
        f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"><style>{STYLE}{colours}</style>'
        f'<text x="62" y="20" font-weight="bold">{TITLE}</text>'
        f'<g transform="translate(0 {TOP})">{drawn}</g>{legend}</svg>\n'
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", type=Path, help="write the plot here")
    arguments = parser.parse_args()
    print(table())
    if arguments.plot:
        arguments.plot.write_text(plot(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
