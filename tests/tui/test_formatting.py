"""StatsLine as text: what is shown under a turn, in the panel and in the plots."""

import pytest
from mlxmtp_tui import formatting
from mlxmtp_tui.formatting import measurement
from mlxmtp_tui.state import KEPT_RATES, SILENT_S, ChatState
from mlxmtp_tui.widgets import panel
from textual.content import Content

from mlxmtp.engine.request import GenerationOptions
from mlxmtp.worker.messages import Downloading, PromptProgress
from tests.tui.harness import MEMORY, compared, headless, loaded, stats


def test_the_line_under_a_turn_says_what_is_known_and_nothing_else() -> None:
    assert formatting.turn_line(stats(), "stop") == (
        "812 tok · 61.2 tok/s · 2.7 tok/round · d1 .88 d2 .71 d3 .52 · ttft 0.41 s · peak 18.2 GB"
    )
    assert "1.49× plain" in formatting.turn_line(stats(), "stop", 1.49)
    plain = formatting.turn_line(stats(5, drafted=0, acceptance_by_depth=(), decode_tps=0.0), "length")
    assert plain == "token limit reached · 5 tok · ttft 0.41 s · peak 18.2 GB"
    assert formatting.turn_line(None, "interrupted") == "stopped"
    assert formatting.turn_line(None, "failed") == "broken off"
    assert formatting.turn_line(None, "stop") == ""
    assert formatting.turn_line(stats(12_345, acceptance_by_depth=(1.0, 0.0)), "stop").startswith("12,345 tok")
    assert "d1 1.00 d2 .00" in formatting.turn_line(stats(acceptance_by_depth=(1.0, 0.0)), "stop")


@pytest.mark.parametrize(
    ("share", "drawn"),
    [(0.0, "    "), (1.0, "████"), (0.5, "██  "), (1 / 32, "▏   "), (31 / 32, "███▉"), (-1.0, "    "), (9.0, "████")],
)
def test_a_bar_has_its_width_to_an_eighth_of_a_cell(share: float, drawn: str) -> None:
    assert formatting.bar(share, 4) == drawn


def test_a_stacked_bar_fills_its_width_whatever_the_parts_are() -> None:
    for parts in ((1.0, 1.0, 1.0), (0.2, 0.7, 0.1), (0.0, 5.0, 0.0), (1e-9, 1.0, 1e-9)):
        drawn = formatting.stacked(dict(zip(formatting.SHADES, parts, strict=True)), 10)
        assert sum(map(len, drawn.values())) == 10, parts
        assert drawn["verify"] == "█" * len(drawn["verify"])
    assert formatting.stacked({"draft": 0.3, "verify": 0.6, "other": 0.1}, 10) == {
        "draft": "░░░",
        "verify": "██████",
        "other": "▒",
    }
    assert formatting.stacked({"draft": 0.0, "verify": 0.0}, 10) == {"draft": "", "verify": ""}


def test_a_sparkline_goes_from_zero_to_its_maximum_and_averages_what_does_not_fit() -> None:
    assert formatting.sparkline([], 5) == ""
    assert formatting.sparkline([0.0, 0.0], 5) == "▁▁"
    assert formatting.sparkline([1.0, 4.0, 8.0], 5) == "▁▄█"
    assert formatting.sparkline([8.0, 8.0, 4.0, 4.0, 0.0, 0.0], 3) == "█▄▁"
    assert len(formatting.sparkline([1.0] * 601, 36)) == 36


def test_columns_rise_by_eighths_and_leave_gaps() -> None:
    assert formatting.columns([2.0, None, 1.0, 0.0], 2.0, 2) == ["█   ", "█ █ "]
    assert formatting.columns([1.0, 9.0], 4.0, 1) == ["▂█"]
    assert formatting.columns([1.0], 0.0, 1) == [" "]


def test_a_plot_has_its_scale_at_the_left_and_shows_the_newest_values() -> None:
    assert formatting.plot([], 20, 3) == []
    assert formatting.plot([None], 20, 3) == []
    lines = formatting.plot([50.0, 100.0], 20, 3, 100, "%")
    assert [line.split("┤")[0].strip() for line in lines] == ["100%", "", "0"]
    assert len({line.index("┤") for line in lines}) == 1
    assert all(len(line) <= 36 for line in formatting.plot([float(i) for i in range(500)], 36, 6))
    assert formatting.plot([1.0] * 99 + [None], 10, 2)[0].endswith("█ "), "the newest is a gap"
    assert formatting.plot([3.0], 20, 2)[0].startswith("3.0 ┤")


def test_context_without_a_limit_shows_none() -> None:
    assert formatting.context(1_234, 32_768) == "1,234 of 32,768 tokens"
    assert formatting.context(1_234, 2**31 - 1) == "1,234 tokens"


@pytest.mark.parametrize(
    ("speculates", "identical", "greedy", "seeded", "said"),
    [
        (False, True, True, True, "plain decoding"),
        (True, True, False, False, "same distribution as plain"),
        (True, False, False, False, "same distribution as plain"),
        (True, True, True, False, "token-identical to plain"),
        (True, True, False, True, "token-identical to plain"),
        (True, False, True, False, "same distribution; near-ties may differ"),
        (True, False, False, True, "same distribution; near-ties may differ"),
    ],
)
def test_no_more_is_promised_than_holds(
    speculates: bool, identical: bool, greedy: bool, seeded: bool, said: str
) -> None:
    assert formatting.promise(speculates=speculates, identical=identical, greedy=greedy, seeded=seeded) == said


def test_plain_decoding_at_another_width_is_named() -> None:
    said = formatting.promise(speculates=True, identical=True, greedy=True, seeded=False, canonical=True)
    assert said == "token-identical to plain at canonical width"
    lines = panel.promise_lines(loaded(promise="identical-canonical"), GenerationOptions())
    assert " ".join(text_of(lines).split()) == "exact token-identical to plain at canonical width"


def test_a_noun_has_its_plural() -> None:
    assert [formatting.plural(n, "turn") for n in (0, 1, 2, 1_000)] == ["0 turns", "1 turn", "2 turns", "1,000 turns"]


def test_a_measurement_is_told_with_its_spread() -> None:
    told = measurement(compared(), "qwen-mtp")
    assert "3 runs each" in told
    assert "Plain, by mlx-lm: 41.0 tok/s (40.0 to 42.0)" in told
    assert "depth 3: 63.0 tok/s (60.0 to 65.6)" in told
    assert "1.50× (1.50 to 1.60)" in told
    assert "×" not in measurement(compared(), None), "without drafts there is no speed-up"
    assert "×" not in measurement(compared(depth=0), "qwen-mtp")


# -- what is live -----------------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def test_the_rate_now_is_that_of_the_last_second() -> None:
    clock = Clock()
    live = ChatState(clock)
    live.begin_turn()
    assert live.current_tps == 0.0
    for tokens in (0, 10, 20, 30):  # ten tokens a half second
        live.add_delta(stats(tokens, rounds=1), MEMORY)
        clock.now += 0.5
    assert live.current_tps == pytest.approx(20)
    for tokens in (130, 230, 330):
        live.add_delta(stats(tokens, rounds=1), MEMORY)
        clock.now += 0.5
    assert live.current_tps == pytest.approx(200), "what was slow is more than a second ago"
    assert next(iter(live.rates)) == pytest.approx(20)
    live.begin_turn()
    assert live.current_tps == 0.0
    assert not live.rates


def test_the_rates_of_a_long_turn_do_not_grow_for_ever() -> None:
    clock = Clock()
    live = ChatState(clock)
    for tokens in range(3 * KEPT_RATES):
        live.add_delta(stats(tokens, rounds=1), MEMORY)
        clock.now += 0.03
    assert len(live.rates) == KEPT_RATES


def test_a_busy_engine_without_a_word_is_silent_and_an_idle_one_is_not() -> None:
    clock = Clock()
    live = ChatState(clock)
    for status in ("starting", "loading", "answering", "stopping", "measuring"):
        live.set_status(status)
        clock.now += SILENT_S - 0.1
        assert live.silence_s == 0.0, status
        clock.now += 0.2
        assert live.silence_s == pytest.approx(SILENT_S + 0.1), status
        live.last_event_at = clock.now
        assert live.silence_s == 0.0, status
    for status in ("ready", "choosing", "gone"):
        live.set_status(status)
        clock.now += 10 * SILENT_S
        assert live.silence_s == 0.0, status


def test_a_speed_up_is_shown_only_against_a_whole_measurement() -> None:
    live = ChatState(Clock())
    assert live.speedup(stats()) is None
    live.comparison = compared(96)
    assert live.plain_tps is None, "one run of three is no measurement"
    live.comparison = compared()
    assert live.plain_tps == 41.0
    assert live.speedup(stats()) == pytest.approx(61.2 / 41.0)
    assert live.speedup(stats(decode_tps=0.0)) is None
    assert live.speedup(None) is None


def test_only_turns_with_figures_are_plotted() -> None:
    live = ChatState(Clock())
    live.end_turn(None, None)
    assert live.turns == []
    live.end_turn(stats(), MEMORY)
    assert [(turn.tps, turn.acceptance) for turn in live.turns] == [(61.2, (0.88, 0.71, 0.52))]
    assert live.status == "ready"


# -- the panel --------------------------------------------------------------------------------------------------


def text_of(lines: list[Content | str]) -> str:
    return "\n".join(line.plain if isinstance(line, Content) else line for line in lines)


def test_the_panel_tells_a_turn_from_first_to_last() -> None:
    clock = Clock()
    live = ChatState(clock)
    settings = GenerationOptions()
    assert "no model is loaded" in text_of(panel.turn_lines(live, None, settings, "demo"))
    live.begin_turn()
    live.prompt_progress = PromptProgress(1, 512, 2_048)
    reading = text_of(panel.turn_lines(live, loaded(), settings, "demo"))
    assert "512 of 2,048 tokens" in reading
    assert "25%" in reading
    for tokens in (100, 160):
        live.add_delta(stats(tokens), MEMORY)
        clock.now += 1
    running = text_of(panel.turn_lines(live, loaded(), settings, "demo"))
    assert "512 of" not in running
    assert "60.0 now, 61.2 this turn" in running
    live.end_turn(stats(), MEMORY)
    over = text_of(panel.turn_lines(live, loaded(), settings, "demo"))
    for part in ("qwen-mtp head", "depth auto", "61.2 this turn", "2.70 tokens", "d1", " 88%", "d3", " 52%"):
        assert part in over, part
    for part in ("ms a round", "░ draft", "█ verify", "▒ other", "1,204 tokens, 980 reused", "ttft 0.41 s"):
        assert part in over, part
    for part in ("2,016 of 32,768 tokens", "17.9 GB of 48.0 GB", "18.2 GB", "310.0 MB"):
        assert part in over, part
    assert "token-identical to plain" in over
    assert " now," not in over
    assert "–  /bench measures it" in over
    live.comparison = compared()
    assert "1.49× plain (41.0 tok/s)" in text_of(panel.turn_lines(live, loaded(), settings, "demo"))


def test_no_line_of_the_panel_is_wider_than_the_panel() -> None:
    live = ChatState(Clock())
    live.comparison = compared()
    live.add_delta(stats(prompt_tokens=131_072, reused_tokens=131_000, prefill_tps=12_345.0, ttft_s=123.45), MEMORY)
    live.end_turn(stats(99_999, acceptance_by_depth=(1.0,) * 4), MEMORY)
    long = "mlx-community/a-model-with-a-very-long-name-instruct-4bit"
    found = loaded(long, head_source="google/gemma-4-31b-it-assistant", head_by_name=True, promise="distribution")
    shown = [*panel.turn_lines(live, found, GenerationOptions(depth=2), long), *panel.plot_lines(live)]
    # the widget has 42 columns, less a border and two of padding at each side; a longer line breaks in the middle
    assert [line for line in text_of(shown).split("\n") if len(line) > 42 - 1 - 4] == []


def test_the_panel_says_why_there_are_no_drafts_and_who_set_the_depth() -> None:
    assert panel.head_lines(headless(), GenerationOptions()) == ["no drafts: the checkpoint has no", "head"]
    assert panel.head_lines(loaded(), GenerationOptions(depth=0))[-1] == "depth 0, plain: you set it"
    assert panel.head_lines(loaded(), GenerationOptions(depth=2))[-1] == "depth 2, you set it"
    apart = panel.head_lines(loaded(head_source="google/assistant", head_by_name=True), GenerationOptions())
    assert apart[0] == "google/assistant, found by name"
    live = ChatState(Clock())
    live.end_turn(stats(drafted=0, acceptance_by_depth=()), MEMORY)
    assert "1 token, no drafts" in text_of(panel.turn_lines(live, headless(), GenerationOptions(), "plain"))
    assert "plain decoding" in text_of(panel.turn_lines(live, headless(), GenerationOptions(), "plain"))


def test_a_download_and_a_measurement_have_their_progress_in_the_panel() -> None:
    live = ChatState(Clock())
    live.set_status("loading")
    live.download = Downloading(1, "owner/name", 3_000_000_000, 4_000_000_000)
    fetching = text_of(panel.turn_lines(live, None, GenerationOptions(), "owner/name"))
    assert "75%" in fetching
    assert "3.0 GB of 4.0 GB" in fetching
    live.set_status("measuring")
    assert live.download is None
    live.comparison = compared(144)
    assert "50%" in text_of(panel.turn_lines(live, loaded(), GenerationOptions(), "demo"))


def test_the_turns_so_far_are_plotted_by_depth_with_gaps_where_a_turn_had_none() -> None:
    live = ChatState(Clock())
    assert "No turn yet." in text_of(panel.plot_lines(live))
    live.end_turn(stats(), MEMORY)
    live.end_turn(stats(acceptance_by_depth=(0.9,)), MEMORY)
    shown = text_of(panel.plot_lines(live))
    assert [f"accepted at depth {depth}" in shown for depth in (1, 2, 3, 4)] == [True, True, True, False]


def test_folded_away_the_panel_is_one_line() -> None:
    live = ChatState(Clock())
    assert panel.one_line(live, loaded()) == ""
    live.end_turn(stats(), MEMORY)
    assert panel.one_line(live, loaded()) == "61.2 tok/s · 2.7 tok/round · 2,016 of 32,768"
    live.comparison = compared()
    assert "1.49×" in panel.one_line(live, loaded())


def test_the_end_of_a_long_name_is_kept() -> None:
    assert panel.shortened("short", 10) == "short"
    assert panel.shortened("0123456789abcdef", 10) == "…789abcdef"


def test_a_new_chat_has_not_been_silent() -> None:
    state = ChatState(lambda: 410.0)  # the machine has been up for as long
    assert (state.busy, state.silence_s, state.status_since) == (True, 0.0, 410.0)
