"""The counters of /metrics and the lines of the log."""

from __future__ import annotations

import asyncio
import re

import pytest

from mlxmtp.server.queue import FairQueue
from mlxmtp.server.telemetry import Log, Metrics
from mlxmtp.server.turn import TurnEnd
from mlxmtp.worker.messages import Failed, Generate
from tests.scripted_engine import MEMORY, asynchronous, stats, until
from tests.server.scripted import CHAT, COMPLETIONS, COUNT, MESSAGES, MINIMAL, LocalServer, serving, turn

SAMPLE = re.compile(r'(\w+)(?:\{((?:\w+="(?:[^"\\\n]|\\["\\n])*",?)+)\})? ([^ ]+)')


def parse_metrics(text: str) -> dict[str, float]:
    """Values by name and labels. The format (version 0.0.4) is checked strictly."""
    assert text.endswith("\n")
    kinds: dict[str, str] = {}
    helped: set[str] = set()
    found: dict[str, float] = {}
    newest = ""
    for line in text.splitlines():
        if line.startswith("# "):
            _, what, name, told = line.split(" ", 3)
            if what == "HELP":
                assert name not in helped
                helped.add(name)
            else:
                assert (what, name) == ("TYPE", newest)
                assert told in ("counter", "gauge")
                assert name.endswith("_total") == (told == "counter"), name
                kinds[name] = told
            newest = name
            continue
        match = SAMPLE.fullmatch(line)
        assert match, line
        name, labels, value = match.groups()
        assert name == newest, "samples stand under their name"
        place = f"{name}{{{labels}}}" if labels else name
        assert place not in found
        found[place] = float(value)
        assert kinds[name] == "gauge" or found[place] >= 0
    assert helped == kinds.keys()
    return {place.removeprefix("mlxmtp_"): value for place, value in found.items()}


async def scrape(served: LocalServer) -> dict[str, float]:
    response = await served.http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    return parse_metrics(response.text)


@asynchronous
async def test_the_counters_of_a_new_server_are_zero() -> None:
    async with serving() as served:
        found = await scrape(served)
        assert found["up"] == 1
        assert {value for name, value in found.items() if name not in ("up", "parallel")} == {0}
        assert {"queue_waiting", "queue_running", "tokens_total", "cache_bytes", "tokens_per_round"} < found.keys()


@asynchronous
async def test_turns_are_counted() -> None:
    first = stats(prompt_tokens=100, reused_tokens=0, tokens=30, rounds=10, ttft_s=0.5)
    second = stats(prompt_tokens=200, reused_tokens=150, tokens=10, rounds=6, ttft_s=0.25)
    shape = {"drafted_by_depth": (10, 10), "acceptance_by_depth": (0.9, 0.5)}
    async with serving(turn("one", stats=stats(**vars(first) | shape))) as served:
        await served.post(CHAT)
        served.engine.on(Generate, turn("two", "length", stats=stats(**vars(second) | shape)))
        await served.post(MESSAGES, MINIMAL[MESSAGES] | {"stream": True})
        await served.post(COUNT, MINIMAL[MESSAGES])
        await served.post(COMPLETIONS, {"prompt": 7})
        found = await scrape(served)
    assert found['requests_total{path="/v1/chat/completions",status="200"}'] == 1
    assert found['requests_total{path="/v1/messages",status="200"}'] == 1
    assert found['requests_total{path="/v1/messages/count_tokens",status="200"}'] == 1
    assert found['requests_total{path="/v1/completions",status="400"}'] == 1
    assert (found['turns_total{reason="stop"}'], found['turns_total{reason="length"}']) == (1, 1)
    assert (found["prompt_tokens_total"], found["cached_tokens_total"], found["cache_hits_total"]) == (300, 150, 1)
    assert (found["tokens_total"], found["rounds_total"], found["tokens_per_round"]) == (40, 16, 2.5)
    assert found["ttft_seconds_total"] == 0.75
    seconds = sum(one.draft_s + one.verify_s + one.other_s for one in (first, second))
    assert found["decode_seconds_total"] == pytest.approx(seconds)
    assert found["cache_bytes"] == MEMORY.caches
    assert (found['drafted_total{depth="1"}'], found['drafted_total{depth="2"}']) == (20, 20)
    assert (found['accepted_total{depth="1"}'], found['accepted_total{depth="2"}']) == (18, 10)
    assert (found['acceptance{depth="1"}'], found['acceptance{depth="2"}']) == (0.9, 0.5)


@asynchronous
async def test_turns_that_share_passes_are_counted() -> None:
    """How many ran beside a turn is in its line of the log too."""
    alone = stats(tokens_by_sequences=(9,), ttft_s=0.5, longest_pause_s=0.25)
    shared = stats(tokens_by_sequences=(4, 0, 6), ttft_s=2.0, longest_pause_s=0.125)
    why = 'layers "a\\b"\nsay no'
    async with serving(turn("one", stats=alone), parallel=3, apart_because=why) as served:
        await served.post(CHAT)
        served.engine.on(Generate, turn("two", stats=shared))
        await served.post(CHAT)
        found = await scrape(served)
        assert [("beside" in line, "beside 2 others" in line) for line in served.log] == [(False, False), (True, True)]
    assert {name: value for name, value in found.items() if name.startswith("tokens_by_turns")} == {
        'tokens_by_turns_total{turns="1"}': 13,
        'tokens_by_turns_total{turns="2"}': 0,
        'tokens_by_turns_total{turns="3"}': 6,
    }
    assert (found["longest_ttft_seconds"], found["longest_pause_seconds"], found["parallel"]) == (2.0, 0.25, 3)
    assert found['turns_apart{reason="layers \\"a\\\\b\\"\\nsay no"}'] == 1


@asynchronous
async def test_the_queue_and_restarts_are_counted() -> None:
    async with serving(queue=1) as served, served.over_socket() as online:
        asking = [asyncio.create_task(online.post(CHAT)) for _ in range(2)]
        await until(lambda: served.host.queue.waiting == 1, "a full queue")
        await online.post(CHAT)
        found = await scrape(online)
        assert (found["queue_waiting"], found["queue_running"]) == (1, 1)
        assert found['requests_total{path="/v1/chat/completions",status="503"}'] == 1
        served.engines.script[Generate] = turn("fine")
        served.engine.die()
        await asyncio.gather(*asking)
        found = await scrape(online)
        assert (found["engine_restarts_total"], found["queue_waiting"], found["queue_running"]) == (1, 0, 0)
        assert found['requests_total{path="/v1/chat/completions",status="500"}'] == 1


def test_large_sums_are_exact() -> None:
    class Nothing:
        ready, restarts = True, 0
        queue, loaded = FairQueue(0), None

    metrics = Metrics()
    for _ in range(3):
        metrics.turn(TurnEnd("stop", stats(ttft_s=1_000_000.1)))
    assert parse_metrics(metrics.text(Nothing()))["ttft_seconds_total"] == pytest.approx(3_000_000.3, abs=1e-6)  # type: ignore[arg-type]


@asynchronous
async def test_the_log_has_a_line_for_each_request() -> None:
    figures = stats(
        prompt_tokens=1_200, reused_tokens=1_000, tokens=30, drafted=30, tokens_per_round=2.5, decode_tps=61.2
    )
    async with serving(turn("fine", stats=figures)) as served:
        await served.post(CHAT, headers={"user-agent": "opencode/1.2 extra"})
        await served.post(CHAT, MINIMAL[CHAT] | {"tools": [{"type": "web_search"}], "n": 2})
        await served.post(CHAT, MINIMAL[CHAT] | {"tools": [{"type": "web_search"}]})
        served.engine.on(Generate, [Failed(0, "failed", "disk full")])
        await served.post(CHAT)
        fine, refused, dropped, failed = served.log
    told = ("POST /v1/chat/completions 200", "opencode/1.2", "1,200 (1,000 cached) + 30 tok", "2.50 tok/round", "stop")
    for part in told:
        assert f" {part}" in f" {fine}"
    assert "extra" not in fine
    assert " 400 " in refused
    assert "n is 2" in refused
    assert "dropped: tool web_search" in dropped
    assert " 500 " in failed
    assert "disk full" in failed


@asynchronous
async def test_requests_without_a_turn_are_logged_and_counted_too() -> None:
    key = {"authorization": "Bearer secret", "user-agent": "curl/8"}
    async with serving(turn("fine"), api_key="secret", origins=("http://page",)) as served:
        preflight = {"origin": "http://page", "access-control-request-method": "POST"}
        asked: list[tuple[str, str, int, str, dict[str, str]]] = [
            ("GET", "/v1/models", 200, "/v1/models", key),
            ("GET", "/v1/models/any/name", 200, "/v1/models", key),
            ("HEAD", "/", 200, "/", key),
            ("GET", CHAT, 405, CHAT, key),
            ("POST", f"{COUNT}/", 307, COUNT, key),
            ("POST", "/v1/embeddings", 404, "other", key),
            ("POST", CHAT, 401, CHAT, {}),
            ("GET", "/secret", 401, "other", {}),
            ("OPTIONS", CHAT, 200, CHAT, preflight),
            ("POST", CHAT, 200, CHAT, key),
        ]
        for method, path, status, _, headers in asked:
            await served.http.request(method, path, headers=headers, json=MINIMAL[CHAT])
            assert f"{method} {path} {status}" in served.log[-1]
            assert ("curl/8" in served.log[-1]) == (headers is key)
        assert len(served.log) == len(asked), "one line each"
        for path in ("/health", "/metrics"):
            await served.http.get(path, headers=key)
        assert len(served.log) == len(asked)
        for place in {(path, status) for _, _, status, path, _ in asked}:
            times = sum(place == (path, status) for _, _, status, path, _ in asked)
            assert served.service.metrics.requests[place] == times
        assert sum(served.service.metrics.requests.values()) == len(asked)


def test_control_characters_of_a_client_do_not_reach_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    Log().request("POST /", 400, 0.1, agent="\x9b31mred", note="one\ntwo\r\x1b[2J\ud800 Grüße")
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert said.rstrip("\n").isprintable()
    assert "Grüße" in said
