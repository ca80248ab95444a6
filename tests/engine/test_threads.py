"""Threads: an engine works in each of them, one turn at a time, and the process ends well afterwards."""

from __future__ import annotations

import gc
import os
import pkgutil
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import mlx.core as mx
import mlxmtp_tui
import pytest

import mlxmtp
from mlxmtp import Engine, GenerationOptions, load, threads
from mlxmtp.checkpoints import open_checkpoint
from mlxmtp.engine.prefix_cache import PrefixCache
from mlxmtp.targets import load_target
from tests.targets.sweep import write_checkpoint

TRAINED = Path(__file__).parent.parent / "trained" / "glm4_moe"
TEXT = "Tom has 3 apples and buys 5 more. How many apples does he have?\n"
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
TURNS = {
    "greedy with drafts": {"depth": 2},
    "plain": {"depth": 0},
    "auto, drawn": {"temperature": 0.7, "seed": 3},
    "penalties and bias": {"repetition_penalty": 1.2, "frequency_penalty": 0.4, "logit_bias": {5: 1.5}, "depth": 2},
    "block verification": {"temperature": 0.7, "seed": 3, "verify": "block", "top_p": 0.9, "top_k": 20, "depth": 2},
    "schema": {"json_schema": SCHEMA, "depth": 2, "temperature": 0.7, "seed": 1},
    "log-probabilities": {"logprobs": 3, "depth": 2},
}
ROPES: dict[str, dict[str, Any]] = {
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 64},
}


def in_a_thread(action: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(action).result()


def turns(engine: Engine, cache: PrefixCache) -> dict[str, list[int]]:
    """Return the tokens of a turn with each of the options; all share a prefix cache."""
    found = {}
    for name, options in TURNS.items():
        chosen = GenerationOptions(max_tokens=12, **options)
        found[name] = engine.generate(TEXT, chosen, prefix_cache=cache, boundaries=(9,)).tokens
    return found


def test_an_engine_works_in_every_thread() -> None:
    engine, cache = load(TRAINED), PrefixCache(10**8)
    expected = turns(engine, cache)
    assert all(expected.values())
    assert in_a_thread(lambda: turns(engine, cache)) == expected
    assert turns(engine, cache) == expected  # on caches that another thread left
    other = in_a_thread(lambda: load(TRAINED))
    assert in_a_thread(lambda: turns(other, PrefixCache(10**8))) == expected


def test_a_turn_may_go_on_in_another_thread() -> None:
    """As in a web framework that runs each step of a generator in a thread of its pool."""
    engine, options = load(TRAINED), GenerationOptions(max_tokens=12, depth=0)
    expected = engine.generate(TEXT, options).tokens
    stream = engine.stream(TEXT, options)
    tokens: list[int] = []
    while chunk := in_a_thread(lambda: next(stream, None)):
        tokens += chunk.tokens
    assert tokens == expected


def test_arrays_that_are_no_parameters_are_evaluated_at_load(tmp_path: Path) -> None:
    for kind, scaling in ROPES.items():
        folder = tmp_path / kind
        write_checkpoint("llama", folder, {"rope_scaling": {"rope_type": kind, **scaling}})
        target = load_target(open_checkpoint(folder))
        assert any("_freqs" in module for module in target.model.modules()), kind

        def logits(target: Any = target) -> list[float]:
            values: Any = target.forward(mx.array([[5, 9, 3]]), target.make_cache())[0][0, -1].tolist()
            return values

        assert in_a_thread(logits) == logits(), kind


def test_no_module_holds_an_array() -> None:
    """A lazy one would belong to the thread that imports the module; any would be made before the device is chosen."""
    names = [
        found.name
        for package in (mlxmtp, mlxmtp_tui)
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    ]
    ours = [import_module(name) for name in names if not name.endswith("__main__")]
    assert len(ours) > 100
    assert not arrays_below(ours)
    planted = ModuleType("planted")
    planted.nested = {"a": [(mx.zeros(1),)]}
    assert arrays_below([planted])


def arrays_below(modules: list[ModuleType]) -> list[str]:
    """Return where arrays are held by our modules, their classes, functions and constants."""
    foreign = {id(vars(module)) for name, module in list(sys.modules.items()) if not name.startswith("mlxmtp")}
    seen, found = foreign, []
    waiting: list[tuple[str, Any]] = [
        (f"{module.__name__}.{key}", value) for module in modules for key, value in vars(module).items()
    ]
    while waiting:
        where, value = waiting.pop()
        if id(value) in seen or isinstance(value, ModuleType):
            continue
        seen.add(id(value))
        if isinstance(value, mx.array):
            found.append(where)
        elif not isinstance(value, type) or value.__module__.startswith(("mlxmtp", "planted")):
            waiting += [(where, part) for part in gc.get_referents(value)]
    return found


PROGRAM = """
import sys
from concurrent.futures import ThreadPoolExecutor
from mlxmtp import GenerationOptions, load

def turn(engine):
    return engine.generate("Tom has 3 apples.", GenerationOptions(max_tokens=12, depth=2)).tokens

engine = load(sys.argv[1])
with ThreadPoolExecutor(1) as pool:
    first = pool.submit(turn, engine).result()
left_open = ThreadPoolExecutor(1)
assert left_open.submit(lambda: turn(load(sys.argv[1]))).result() == first
print("done")
"""


@pytest.mark.process
def test_a_process_that_used_pools_ends_well() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, TRAINED], capture_output=True, text=True, timeout=120, env={**os.environ}
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "done\n", "")


def test_the_end_of_the_process_waits_for_ended_threads_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux lists the threads of a process; a thread of Python that still runs is a daemon and is not waited for."""
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        for task in tmp_path.iterdir():
            task.unlink()

    own = threading.get_native_id()
    monkeypatch.setattr(threads, "_TASKS", tmp_path)
    monkeypatch.setattr(threads, "_users", {own})
    monkeypatch.setattr(threads.time, "sleep", sleep)
    (tmp_path / str(own)).touch()
    threads.wait_for_ended_threads()
    assert not slept
    threads._users.add(-1)
    (tmp_path / "-1").touch()
    threads.wait_for_ended_threads()
    assert slept == [0.001]
