"""The texts and bytes that logprobs report for single tokens."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

from mlxmtp.checkpoints.checkpoint import DEMO
from mlxmtp.engine.loading import load_tokenizer
from mlxmtp.server.vocabulary import Vocabulary
from mlxmtp.worker.messages import Event, Generate
from tests.scripted_engine import asynchronous
from tests.server.protocols import PROTOCOLS
from tests.server.scripted import serving, turn

TEXT = "né 日本 😀 ok\n"


@cache
def tokenizer() -> Any:
    return load_tokenizer(DEMO, [2])


def test_bytes_joined_are_those_of_the_text() -> None:
    vocabulary, tokens = Vocabulary(tokenizer()), tokenizer().encode(TEXT, add_special_tokens=False)
    assert b"".join(map(vocabulary.token_bytes, tokens)) == TEXT.encode()
    assert sum(map(vocabulary.characters, tokens)) == len(TEXT)
    parts = [token for token in tokens if "\ufffd" in vocabulary.text(token)]
    assert len(parts) > 4, "this vocabulary has some of these characters as bytes only"
    assert len({vocabulary.unique_text(token) for token in parts}) == len(set(parts))
    assert vocabulary.unique_text(parts[0]).startswith("bytes:\\x")
    assert (vocabulary.text(1 << 20), vocabulary.token_bytes(1 << 20)) == ("", b""), "no such token"


def test_a_tokenizer_that_does_not_tell_its_bytes(monkeypatch: Any) -> None:
    monkeypatch.setattr(type(tokenizer()._tokenizer), "backend_tokenizer", None)
    vocabulary, (token,) = Vocabulary(tokenizer()), tokenizer().encode("ok", add_special_tokens=False)
    assert (vocabulary.text(token), vocabulary.token_bytes(token)) == ("ok", b"ok")


@asynchronous
async def test_answers_have_them() -> None:
    tokens = tokenizer().encode(TEXT, add_special_tokens=False)
    logprobs = [[token, -0.5, [[token, -0.5], [token ^ 1, -1.5]]] for token in tokens]
    chat, completions = PROTOCOLS[0], "/v1/completions"
    assert chat.path == "/v1/chat/completions"

    def answers(command: Generate) -> list[Event]:
        first, *others = turn(TEXT, piece=0)(command)
        return [replace(first, logprobs=logprobs), *others]

    async with serving(answers) as served:
        body = chat.ask("Hello?", [], logprobs=True, top_logprobs=2)
        content = (await served.post(chat.path, body)).json()["choices"][0]["logprobs"]["content"]
        assert bytes(byte for entry in content for byte in entry["bytes"]) == TEXT.encode()
        choice = (await served.post(completions, {"prompt": "Hello?", "logprobs": 2})).json()["choices"][0]
        assert [len(top) for top in choice["logprobs"]["top_logprobs"]] == [2] * len(tokens)
        offsets = choice["logprobs"]["text_offset"]
        assert offsets[-1] == len(TEXT) - 1
