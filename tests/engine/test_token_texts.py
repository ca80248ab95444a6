"""Tokenizers with holes between their ids, and fewer of them than the embedding has rows: every row has a text."""

import json
from pathlib import Path
from typing import Any

from mlxmtp import GenerationOptions, load
from mlxmtp.engine.loading import load_tokenizer
from tests import tiny

ROWS, TOKENS, HOLE, LAST = 310, 300, 290, 305
SPACES: list[dict[str, Any]] = [
    {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
]
STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
DECODERS: dict[str, list[dict[str, Any]]] = {
    "BPEStreamingDetokenizer": [{"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}],
    "SPMStreamingDetokenizer": [
        {"type": "Sequence", "decoders": [*SPACES, STRIP]},
        {"type": "Sequence", "decoders": SPACES},
    ],
    "NaiveStreamingDetokenizer": [{"type": "Fuse"}],
}
"""For each of mlx-lm's detokenizers the decoders of a tokenizer.json that choose it."""


def write_tokenizer(folder: Path, decoder: dict[str, Any], *, hole: bool) -> None:
    """Write a tokenizer; with a hole, one of its ids has no token, and one token has an id beyond their number."""
    tiny.tokenizer(folder, TOKENS)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["decoder"] = decoder
    if hole:
        names = {id: name for name, id in content["model"]["vocab"].items()}
        del content["model"]["vocab"][names[HOLE]]
        content["model"]["vocab"][names[TOKENS - 1]] = LAST
    (folder / "tokenizer.json").write_text(json.dumps(content))


def test_every_row_of_the_embedding_has_a_text(tmp_path: Path) -> None:
    for name, decoders in DECODERS.items():
        for decoder in decoders:
            for hole in (False, True):
                write_tokenizer(tmp_path, decoder, hole=hole)
                tokenizer = load_tokenizer(tmp_path, vocab_size=ROWS)
                assert type(tokenizer.detokenizer).__name__ == name
                letters = tokenizer.encode("ab", add_special_tokens=False)
                assert len(tokenizer.get_vocab()) == TOKENS - hole
                for token in (HOLE, TOKENS - 1, TOKENS, LAST, ROWS - 1):
                    written = tokenizer.detokenizer
                    for one in (letters[0], token, letters[1]):
                        written.add_token(one)
                    written.finalize()
                    assert (written.text != "ab") == (token in ((LAST,) if hole else (HOLE, TOKENS - 1))), (name, token)
                    assert written.text == tokenizer.decode([letters[0], token, letters[1]]), (name, hole, token)


def test_a_generated_id_without_a_token_has_no_text(tmp_path: Path) -> None:
    folder = tiny.raw_checkpoint(tmp_path, "qwen3_5", dtype="float32", vocab=ROWS)
    write_tokenizer(folder, DECODERS["BPEStreamingDetokenizer"][0], hole=True)
    engine = load(folder)
    a, b = engine.tokenizer.encode("ab", add_special_tokens=False)
    for token in (HOLE, ROWS - 1):
        options = GenerationOptions(max_tokens=12, temperature=1.0, seed=1, logit_bias={a: 1000.0, token: 1000.0})
        found = engine.generate([a, b], options)
        assert 0 < found.tokens.count(token) < 12, token
        assert found.text == "a" * found.tokens.count(a), token
