"""The options of a turn: what they accept, and that they need no MLX."""

import math
import subprocess
import sys
from dataclasses import FrozenInstanceError, asdict, replace
from typing import Any

import pytest

from mlxmtp import GenerationOptions, OptionError
from mlxmtp.decoding.sampling import Sampling

REFUSED: dict[str, list[Any]] = {
    "temperature": [-1.0, 1e-7, math.nan, math.inf, "hot"],
    "top_p": [0, 1.1, -0.5, math.nan, "all"],
    "top_k": [-1, 2.5],
    "min_p": [-0.1, 1.5, math.nan],
    "seed": [-1, 2**64, 1.5],
    "frequency_penalty": [math.nan, math.inf, "much"],
    "presence_penalty": [math.nan, math.inf],
    "repetition_penalty": [0, -1, math.nan, math.inf],
    "logit_bias": [5, [1, 2], {-1: 1.0}, {1: math.inf}, {"a": 1.0}],
    "verify": ["maybe", "", 1],
    "depth": [-1, 17, 1.0, "auto"],
    "max_tokens": [0, -5, 2.0, "many"],
    "stop": ["", ["a", ""]],
    "logprobs": [-1, 21, 1.5],
}
ACCEPTED: dict[str, list[Any]] = {
    "temperature": [0, 1e-6, 1.0, 1e6],
    "top_p": [1e-9, 1],
    "top_k": [0, 10**9],
    "min_p": [0, 1],
    "seed": [None, 0, 2**64 - 1],
    "frequency_penalty": [-2.0, 2],
    "presence_penalty": [-2.0, 2],
    "repetition_penalty": [1e-3, 5],
    "logit_bias": [{}, {0: -100, 7: 1.5}],
    "verify": [None, "token", "block", "seeded"],
    "depth": [None, 0, 16],
    "max_tokens": [None, 1, 10**9],
    "stop": ["a", ["a", "b"], ()],
    "logprobs": [None, 0, 20],
}


def test_values_out_of_range_are_refused_by_their_name() -> None:
    for name, values in REFUSED.items():
        for value in values:
            with pytest.raises(OptionError) as caught:
                GenerationOptions(**{name: value})
            assert str(caught.value).startswith("a stop string" if name == "stop" else f"{name} is {value!r}; expected")


def test_values_at_the_bounds_are_accepted() -> None:
    assert ACCEPTED.keys() == REFUSED.keys()
    for name, values in ACCEPTED.items():
        for value in values:
            GenerationOptions(**{name: value})


def test_a_changed_copy_is_checked_too() -> None:
    options = GenerationOptions(temperature=0.5)
    with pytest.raises(OptionError, match="top_k is -1"):
        replace(options, top_k=-1)
    with pytest.raises(FrozenInstanceError):
        options.top_k = 5  # type: ignore[misc]


def test_stops_and_biases_are_kept_as_tuples() -> None:
    assert GenerationOptions(stop="END").stop == GenerationOptions(stop=["END"]).stop == ("END",)
    assert GenerationOptions(logit_bias={7: 1.5}) == GenerationOptions(logit_bias=[(7, 1.5)])


def test_what_decides_the_tokens() -> None:
    assert GenerationOptions().deterministic
    assert GenerationOptions(temperature=1.0, seed=3).deterministic
    assert not GenerationOptions(temperature=1.0).deterministic
    assert not GenerationOptions(temperature=1.0, seed=3, verify="block").deterministic


def test_the_chain_is_that_of_decoding() -> None:
    chain = {"temperature": 0.7, "top_p": 0.9, "top_k": 40, "min_p": 0.05, "seed": 11}
    penalties = {"frequency_penalty": 0.1, "presence_penalty": 0.2, "repetition_penalty": 1.3}
    found = GenerationOptions(**chain, **penalties, logit_bias={7: -1.5, 3: 2.0}, depth=2).sampling
    assert asdict(found) == chain | penalties | {"logit_bias": ((3, 2.0), (7, -1.5))}
    assert GenerationOptions().sampling == Sampling()


def test_no_mlx_is_imported() -> None:
    """The process of the chat imports the record, and must start fast and without MLX."""
    script = (
        "import sys; from mlxmtp.engine.request import GenerationOptions; GenerationOptions(top_k=3);"
        "import mlxmtp; mlxmtp.GenerationOptions(seed=1);"
        "print([name for name in ('mlx', 'mlx_lm', 'transformers', 'numpy') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout.strip() == "[]"
