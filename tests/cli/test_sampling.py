"""`mlxmtp generate` and `mlxmtp chat` sample as the model recommends, and say so; the command line comes first."""

import json
import sys
from pathlib import Path

import pytest

from mlxmtp import GenerationOptions
from mlxmtp.engine.request import recommended_in_words
from tests.cli.fake import Engine

RECOMMENDED = {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "do_sample": True, "eos_token_id": 3}
LINE = "mlxmtp: sampling as the model recommends: "


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "generation_config.json").write_text(json.dumps(RECOMMENDED))
    return tmp_path


def test_generate_takes_what_the_command_line_leaves_out(generate, model: Path) -> None:
    own = {"temperature": 0.6, "top_p": 0.95, "top_k": 20}
    cases: list[tuple[list[str], dict[str, float], str]] = [
        ([], own, "temperature 0.6, top-p 0.95, top-k 20"),
        (["--json"], own, "temperature 0.6, top-p 0.95, top-k 20"),
        (["--temp", "0.2", "--top-k", "0"], own | {"temperature": 0.2, "top_k": 0}, "top-p 0.95"),
        (["--temp", "0"], own | {"temperature": 0.0}, ""),
    ]
    for given, sampling, words in cases:
        engine = Engine(path=model)
        ran = generate(*given, engine=engine)
        assert engine.calls[0]["options"] == GenerationOptions(**sampling), given
        assert [line for line in ran.err.splitlines() if line.startswith(LINE)] == [LINE + words] * bool(words), given


def test_what_a_model_recommends_out_of_range_is_ignored_with_a_warning(generate, model: Path) -> None:
    (model / "generation_config.json").write_text(
        json.dumps({"temperature": -1, "top_k": 20, "repetition_penalty": 1.1})
    )
    engine = Engine(path=model)
    ran = generate(engine=engine)
    assert engine.calls[0]["options"] == GenerationOptions(top_k=20, repetition_penalty=1.1)
    assert "warning" in ran.err
    assert "temperature is -1" in ran.err
    assert f"{LINE}repetition-penalty 1.1\n" in ran.err, "top-k does nothing at temperature 0"


def test_words_name_only_what_the_model_changes() -> None:
    assert recommended_in_words({}, {}) == recommended_in_words({"temperature": 0.0}, {"temperature": 0.7}) == ""
    assert recommended_in_words({"temperature": 0.0, "top_k": 20}, {}) == ""
    assert recommended_in_words({"temperature": 1.0, "top_p": 1.0, "min_p": 0.05}, {}) == "temperature 1, min-p 0.05"
    assert recommended_in_words({"top_k": 20}, {"temperature": 0.7}) == "top-k 20"


def test_the_chat_is_told_what_the_user_chose(cli, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    monkeypatch.setattr("mlxmtp.cli.chat.on_a_terminal", lambda: True)
    monkeypatch.setattr("mlxmtp_tui.app.run", lambda options, *_, **__: opened.append(options))
    assert cli("chat", "--model", "demo", "--temp", "0", "--seed", "7", "--depth", "2").code == 0
    assert "mlxmtp_tui.app" in sys.modules
    (options,) = opened
    assert options.sampling == {"temperature": 0.0, "seed": 7}
    assert options.settings == GenerationOptions(depth=2, max_tokens=4096)
