"""The options of requests that leave them out: the command line, then the model's recommendation, then the API's."""

import json
from pathlib import Path
from typing import Any

from mlxmtp import GenerationOptions
from mlxmtp.engine.recommended import recommended_sampling
from mlxmtp.server.main import ServeOptions, default_options


def recommended(folder: Path, **fields: object) -> dict[str, Any]:
    (folder / "generation_config.json").write_text(json.dumps(fields))
    return recommended_sampling(folder, lambda _: None)


def test_the_models_recommendation_is_used(tmp_path: Path) -> None:
    fields = recommended(tmp_path, temperature=0.6, top_k=20, top_p=0.95, do_sample=True, eos_token_id=3)
    expected = GenerationOptions(temperature=0.6, top_k=20, top_p=0.95, max_tokens=None)
    assert default_options(fields, ServeOptions()) == expected


def test_the_command_line_comes_first(tmp_path: Path) -> None:
    fields = recommended(tmp_path, temperature=0.6, top_k=20)
    options = ServeOptions(depth=2, sampling={"temperature": 0.1})
    expected = GenerationOptions(temperature=0.1, top_k=20, depth=2, max_tokens=None)
    assert default_options(fields, options) == expected


def test_recommended_values_out_of_range_are_skipped(tmp_path: Path) -> None:
    """A model's files must not make a server that cannot start."""
    fields = recommended(tmp_path, temperature=0.6, top_p=0, top_k=-1, min_p="none", repetition_penalty=None)
    assert default_options(fields, ServeOptions()) == GenerationOptions(temperature=0.6, max_tokens=None)


def test_without_a_recommendation(tmp_path: Path) -> None:
    assert default_options({}, ServeOptions()) == GenerationOptions(temperature=1.0, max_tokens=None)
    greedy = recommended(tmp_path, do_sample=False)
    assert default_options(greedy, ServeOptions()) == GenerationOptions(temperature=0.0, max_tokens=None)
