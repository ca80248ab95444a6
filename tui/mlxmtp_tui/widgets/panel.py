"""The statistics panel: the present turn, or a plot of all turns."""

from __future__ import annotations

import textwrap
from typing import Literal

from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.content import Content
from textual.widgets import Static

from mlxmtp.decoding.stats import Stats
from mlxmtp.engine.request import GenerationOptions
from mlxmtp.terminal import visible
from mlxmtp.units import size
from mlxmtp.worker.messages import Loaded
from mlxmtp_tui.formatting import MUTED, SHADES, bar, context, plot, promise, sparkline, stacked
from mlxmtp_tui.state import ChatState

WIDTH = 36
"""Columns of the text."""
LABEL = 9
"""Columns of the labels at its left."""
StatsView = Literal["live", "turns", "line"]
COLOURS = {"draft": "$warning", "verify": "$primary", "other": MUTED}

Line = Content | str


class Panel(VerticalScroll):
    """One text, redrawn as a whole: that is cheap enough for a few times a second."""

    can_focus = False
    _height = -1

    def compose(self) -> ComposeResult:
        yield Static(id="figures-now")

    def draw(
        self, view: StatsView, state: ChatState, loaded: Loaded | None, settings: GenerationOptions, name: str
    ) -> None:
        """Draw the statistics.

        Args:
            view: "turns" plots all turns; the others show the present one.
            name: of the model.
        """
        lines = plot_lines(state) if view == "turns" else turn_lines(state, loaded, settings, name)
        text = Content("\n").join(map(_content, lines))
        height = text.plain.count("\n")
        self.query_one("#figures-now", Static).update(text, layout=height != self._height)  # layout is expensive
        self._height = height


def turn_lines(state: ChatState, loaded: Loaded | None, settings: GenerationOptions, name: str) -> list[Line]:
    """The panel of the present turn; of the last one when none runs."""
    lines: list[Line] = [Content.styled(shortened(name, WIDTH), "bold")]
    lines += [Content.styled(line, MUTED) for line in head_lines(loaded, settings, state.stats)]
    lines += ["", *rate_lines(state), "", *draft_lines(state), *round_lines(state), "", *prompt_lines(state)]
    return [*lines, "", *memory_lines(state, loaded), *promise_lines(loaded, settings)]


def head_lines(loaded: Loaded | None, settings: GenerationOptions, stats: Stats | None = None) -> list[str]:
    """The head and the depth, with the reason for them."""
    if loaded is None:
        return ["no model is loaded"]
    if loaded.head is None:
        return wrapped(f"no drafts: {loaded.plain_because}")
    head = loaded.head_source or f"{loaded.head} head"
    lines = wrapped(head + (", found by name" if loaded.head_by_name else ""))
    if settings.depth is None:
        return [*lines, *wrapped((stats.policy if stats else "") or "depth auto")]
    return [*lines, "depth 0, plain: you set it" if settings.depth == 0 else f"depth {settings.depth}, you set it"]


def rate_lines(state: ChatState) -> list[Line]:
    stats, running = state.stats, state.status in ("answering", "stopping")
    turn = f"{stats.decode_tps:.1f}" if stats and stats.decode_tps else "–"
    rate = f"{state.current_tps:.1f} now, {turn} this turn" if running and state.current_tps else f"{turn} this turn"
    speedup, plain = state.speedup(stats), state.plain_tps
    against = f"{speedup:.2f}× plain ({plain:.1f} tok/s)" if speedup and plain else "–  /bench measures it"
    if plain and not speedup:
        against = f"–  (plain: {plain:.1f} tok/s)"
    spark = Content.styled(sparkline(list(state.rates), WIDTH), "$success")
    return [row("tok/s", rate), spark, row("speed-up", against)]


def draft_lines(state: ChatState) -> list[Line]:
    stats = state.stats
    if not stats or not (stats.drafted or stats.looked_up):
        return [row("a round", "–" if not stats else "1 token, no drafts")]
    lines: list[Line] = [row("a round", f"{stats.tokens_per_round:.2f} tokens")]
    for depth, share in enumerate(stats.acceptance_by_depth, start=1):
        label = "accepted" if depth == 1 else ""
        bars = Content.styled(bar(share, WIDTH - LABEL - 9), "$accent")
        lines.append(Content.assemble(_label(label), f"d{depth} ", bars, f" {share:4.0%}"))
    if stats.looked_up:
        lines.append(row("looked up", f"{stats.looked_up_accepted} of {stats.looked_up} in the text"))
    return lines


def round_lines(state: ChatState) -> list[Line]:
    stats = state.stats
    if not stats or not stats.timed_rounds:
        return []
    parts = {"draft": stats.draft_s, "verify": stats.verify_s, "other": stats.other_s}
    cells = stacked(parts, WIDTH - LABEL)
    rounds = max(stats.rounds - 1, 1)
    drawn = Content.assemble(_label(""), *((cells[name], COLOURS[name]) for name in parts))
    each = {name: value / rounds * 1e3 for name, value in parts.items()}
    legend = [(f"{SHADES[name]} {name} {_short(value)} ", COLOURS[name]) for name, value in each.items()]
    return [row("time", f"{_short(sum(each.values()))} ms a round"), drawn, Content.assemble(*legend)]


def prompt_lines(state: ChatState) -> list[Line]:
    if download := state.download:
        share = download.done / max(download.total, 1)
        lines: list[Line] = [row("fetching", shortened(download.repo, WIDTH - LABEL))]
        return [*lines, _progress(share, f"{size(download.done)} of {size(download.total)}")]
    if state.status == "measuring" and (comparison := state.comparison):
        return [row("measuring", "mlx-lm plain, then MTP"), _progress(comparison.done / comparison.total, "")]
    if prompt := state.prompt_progress:
        tokens = f"{prompt.done:,} of {prompt.total:,} tokens"
        return [row("reading", tokens), _progress(prompt.done / max(prompt.total, 1), "")]
    stats = state.stats
    if not stats:
        return [row("prompt", "–")]
    reused = f", {stats.reused_tokens:,} reused" if stats.reused_tokens else ""
    rate = f"{stats.prefill_tps:,.0f} tok/s, ttft {stats.ttft_s:.2f} s"
    return [row("prompt", f"{stats.prompt_tokens:,} tokens{reused}"), row("", rate)]


def memory_lines(state: ChatState, loaded: Loaded | None) -> list[Line]:
    lines: list[Line] = []
    if loaded and state.stats:
        used = state.stats.prompt_tokens + state.stats.tokens
        lines += [row("context", context(used, loaded.context))]
    if loaded and (memory := state.memory):
        lines += [row("memory", f"{size(memory.active)} of {size(loaded.memory_limit)}")]
        lines += [row("peak", size(memory.peak)), row("caches", size(memory.caches))]
    return lines


def promise_lines(loaded: Loaded | None, settings: GenerationOptions) -> list[Line]:
    if not loaded:
        return []
    holds = loaded.promise_at(settings.depth)
    said = promise(
        speculates=bool(loaded.head) and settings.depth != 0,
        identical=holds != "distribution",
        greedy=settings.temperature == 0,
        seeded=settings.seed is not None,
        canonical=holds == "identical-canonical",
    )
    first, *rest = textwrap.wrap(said, WIDTH - LABEL)
    return [row("exact", first), *(row("", line) for line in rest)]


def plot_lines(state: ChatState) -> list[Line]:
    """Plots of the rates and the acceptance, a column for each turn of this chat."""
    if not state.turns:
        return [Content.styled("The turns of this session", "bold"), "", "No turn yet."]
    lines: list[Line] = [Content.styled("tok/s of each turn", "bold"), ""]
    lines += [Content.styled(line, "$success") for line in plot([turn.tps for turn in state.turns], WIDTH, 6)]
    depths = max(len(turn.acceptance) for turn in state.turns)
    for depth in range(min(depths, 4)):
        shares = [turn.acceptance[depth] if depth < len(turn.acceptance) else None for turn in state.turns]
        lines += ["", Content.styled(f"accepted at depth {depth + 1}", "bold"), ""]
        lines += [Content.styled(line, "$accent") for line in plot([_percent(s) for s in shares], WIDTH, 3, 100, "%")]
    return lines


def one_line(state: ChatState, loaded: Loaded | None) -> str:
    """The statistics for a panel that is folded to a line."""
    stats = state.stats
    if not stats:
        return ""
    rate = state.current_tps if state.status == "answering" else stats.decode_tps
    parts = [f"{rate:.1f} tok/s" if rate else "", f"{stats.tokens_per_round:.1f} tok/round" if stats.drafted else ""]
    if speedup := state.speedup(stats):
        parts.append(f"{speedup:.2f}×")
    if loaded:
        parts.append(context(stats.prompt_tokens + stats.tokens, loaded.context).removesuffix(" tokens"))
    return " · ".join(part for part in parts if part)


def row(label: str, value: str) -> Content:
    return Content.assemble(_label(label), value)


def shortened(text: str, width: int) -> str:
    """The end of a long text: of a path or a repo it tells more than the beginning."""
    text = visible(text)
    return text if len(text) <= width else "…" + text[-width + 1 :]


def wrapped(text: str, lines: int = 4) -> list[str]:
    return textwrap.wrap(visible(text), WIDTH, max_lines=lines, placeholder=" …")


def _label(text: str) -> tuple[str, str]:
    return text.ljust(LABEL), MUTED


def _progress(share: float, text: str) -> Content:
    return Content.assemble(_label(""), (bar(share, WIDTH - LABEL - 5), "$primary"), f" {share:4.0%}", f"\n{text}")


def _short(value: float) -> str:
    return f"{value:.1f}" if value < 10 else f"{value:.0f}"


def _percent(share: float | None) -> float | None:
    return None if share is None else share * 100


def _content(line: Line) -> Content:
    return Content(line) if isinstance(line, str) else line
