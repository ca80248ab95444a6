"""What a model's files recommend is used where it is possible, and reported where it is not."""

import json
from pathlib import Path
from typing import Any

from mlxmtp.engine.recommended import recommended_sampling


def read(folder: Path, content: str) -> tuple[dict[str, Any], list[str]]:
    (folder / "generation_config.json").write_text(content)
    warnings: list[str] = []
    return recommended_sampling(folder, warnings.append), warnings


def test_values_in_range(tmp_path: Path) -> None:
    for stated, expected in (
        ({"temperature": 0.6, "top_k": 20, "eos_token_id": 3}, {"temperature": 0.6, "top_k": 20}),
        ({"do_sample": False}, {"temperature": 0.0}),
        ({"do_sample": False, "temperature": 0.3}, {"temperature": 0.3}),
        ({"temperature": None, "do_sample": True}, {}),
        ({"repetition_penalty": 1.1, "top_p": 1, "min_p": 0}, {"repetition_penalty": 1.1, "top_p": 1, "min_p": 0}),
    ):
        assert read(tmp_path, json.dumps(stated)) == (expected, []), stated
    (tmp_path / "generation_config.json").unlink()
    assert recommended_sampling(tmp_path, lambda _: None) == {}


def test_a_value_out_of_range_is_ignored_with_a_warning(tmp_path: Path) -> None:
    for name, values in {
        "temperature": (-1, "hot", [1], 1e-9, float("inf"), float("nan"), 10**400),
        "top_p": (0, 2, -0.5, {}),
        "top_k": (-1, 0.5),
        "min_p": (-1, 2),
        "repetition_penalty": (0, -1, 10**400, "1"),
    }.items():
        for value in values:
            fields, warnings = read(tmp_path, json.dumps({"top_p": 0.9} | {name: value}))
            assert fields == ({} if name == "top_p" else {"top_p": 0.9}), (name, value)
            assert len(warnings) == 1, (name, value)
            assert f"generation_config.json: {name} is " in warnings[0], warnings
            assert warnings[0].endswith("it is ignored"), warnings


def test_a_damaged_file_is_ignored_with_a_warning(tmp_path: Path) -> None:
    for content, why in (("{", "Expecting"), ("[" * 100_000, "nested too deeply"), ("[1]", "expected a JSON object")):
        fields, warnings = read(tmp_path, content)
        assert fields == {}, content[:9]
        assert len(warnings) == 1, content[:9]
        assert f"generation_config.json is ignored: {why}" in warnings[0], warnings
