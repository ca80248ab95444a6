"""Answers that come back as text with other ids than the model wrote."""

import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from mlx_lm.utils import load_tokenizer

from mlxmtp import Engine, GenerationOptions, load
from mlxmtp.checkpoints.checkpoint import DEMO
from mlxmtp.decoding.sequence import Sequence
from mlxmtp.decoding.snapshots import Position, PrefixInfo
from mlxmtp.engine.grammar import token_trie
from mlxmtp.engine.prefix_cache import PrefixCache
from mlxmtp.engine.prompt import Rendered, apply_template, render
from mlxmtp.engine.retokenization import TokenUnits, restore_generated_ids
from tests import tiny
from tests.engine.disk import Disk
from tests.engine.kinds import PLENTY
from tests.scripted import assert_same_state, snapshot

SYSTEM = {"role": "system", "content": "You are terse. " * 9}
ASKS = {"role": "user", "content": "What is in the file?"}
AGAIN = {"role": "user", "content": "Are you sure?"}
LETTERS = "therin "
END, OTHER_END, NO_END = 2, 0, 4000


def says(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(DEMO)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """With the demo's tokenizer, and caches that go back to snapshots only."""
    folder = tiny.raw_checkpoint(tmp_path_factory.mktemp("model"), "qwen3_5", dtype="float32", vocab=4096)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO / name, folder)
    return load(folder)


def spell(tokenizer: Any, text: str) -> list[int]:
    """Return the ids of a text, letter by letter."""
    return [token for letter in text for token in tokenizer.encode(letter, add_special_tokens=False)]


# -- conversations --------------------------------------------------------------------------------------------


def test_a_conversation_goes_on_from_the_ids_that_the_model_wrote(engine: Engine, tmp_path: Path) -> None:
    """Turn by turn, after a restart too: the new tokens are read, and tokens and caches are those of a fresh run."""
    disk, tokenizer = Disk(tmp_path, engine), engine.tokenizer
    prefixes, alone, held = disk.cache(), PrefixCache(PLENTY), 0
    bias = dict.fromkeys(spell(tokenizer, LETTERS), 1000.0)
    options = GenerationOptions(max_tokens=12, depth=3, logit_bias=bias)
    messages: list[dict[str, Any]] = [SYSTEM, ASKS]
    ids, before = render(tokenizer, messages).tokens, apply_template(tokenizer, messages)
    for number in range(3):
        found = engine.generate(messages, options, prefix_cache=prefixes)
        assert found.tokens == engine.generate(ids, options).tokens, number
        assert (found.stats.prompt_tokens, found.stats.reused_tokens) == (len(ids), held), number
        if number:
            as_text = render(tokenizer, messages)
            plain = engine.generate(
                as_text.tokens, options, prefix_cache=alone, boundaries=as_text.boundaries
            ).stats.reused_tokens
            assert plain < held - 10, "literal ids are read as they are"
        assert tokenizer.encode(found.text, add_special_tokens=False) != found.tokens, "nothing to restore"
        newest = prefixes._sequences[-1]
        fresh = Sequence(engine.target, engine.mtp)
        fresh.prefill([*ids, *found.tokens])
        assert newest.tokens == fresh.tokens
        assert_same_state(snapshot(newest.cache), snapshot(fresh.cache), number)
        if number == 0:
            prefixes.close()
            prefixes = disk.cache()
        alone = PrefixCache(PLENTY)
        engine.generate(ids, options, prefix_cache=alone, boundaries=render(tokenizer, messages).boundaries)
        held = len(ids) + len(found.tokens)
        messages = [*messages, says(found.text), AGAIN]
        text = apply_template(tokenizer, messages)
        assert text.startswith(before + found.text)
        rest = tokenizer.encode(text[len(before + found.text) :], add_special_tokens=False)
        ids, before = [*ids, *found.tokens, *rest], text
    assert disk.warnings == []


def test_an_answer_with_another_end_token_than_the_templates_is_remembered(engine: Engine) -> None:
    """All turns after it continue from its ids: only its end token and what follows are read."""
    tokenizer = engine.tokenizer
    own_ends, bias = tokenizer.eos_token_ids, dict.fromkeys([OTHER_END, *spell(tokenizer, LETTERS)], 1000.0)
    tokenizer.eos_token_ids = {END, OTHER_END}
    options = GenerationOptions(max_tokens=30, depth=3, temperature=1.0, seed=2, logit_bias=bias)
    prefixes, held, messages = PrefixCache(PLENTY), 0, [SYSTEM, ASKS]
    for number in range(3):
        found = engine.generate(messages, options, prefix_cache=prefixes)
        newest, count = prefixes._sequences[-1], found.stats.prompt_tokens
        ids = newest.tokens[:count]
        assert tokenizer.decode(ids) == apply_template(tokenizer, messages), number
        assert found.stats.reused_tokens == held, number
        assert found.tokens == engine.generate(ids, options).tokens, number
        assert found.tokens[-1] == OTHER_END, "nothing that this test is about"
        assert tokenizer.encode(found.text, add_special_tokens=False) != found.tokens[:-1], "nothing to restore"
        fresh = Sequence(engine.target, engine.mtp)
        fresh.prefill([*ids, *found.tokens])
        assert_same_state(snapshot(newest.cache), snapshot(fresh.cache), number)
        held = count + len(found.tokens) - 1
        messages = [*messages, says(found.text), AGAIN]
    tokenizer.eos_token_ids = own_ends


# -- what is replaced -----------------------------------------------------------------------------------------


ANSWER = "there is there\n"


@cache
def units_of(tokenizer: Any) -> TokenUnits:
    trie = token_trie(tokenizer)
    return TokenUnits(tokenizer, lambda: trie)


def restored(tokenizer: Any, messages: list[dict[str, Any]], *known: PrefixInfo, context: int = 4096) -> Rendered:
    units = units_of(tokenizer)
    return restore_generated_ids(render(tokenizer, messages), known, units, drafting=False, context=context)


def known(tokens: list[int], *answers: tuple[int, int]) -> PrefixInfo:
    return PrefixInfo(tokens, Position(len(tokens) - 1), (), False, None, answers)


def test_answers_of_the_same_text_are_replaced(tokenizer: Any) -> None:
    start = render(tokenizer, [SYSTEM, ASKS]).tokens
    count = len(start)
    written = [*start, *spell(tokenizer, ANSWER), END]
    messages = [SYSTEM, ASKS, says(ANSWER), AGAIN]
    plain = render(tokenizer, messages)
    grown = len(spell(tokenizer, ANSWER)) - len(tokenizer.encode(ANSWER, add_special_tokens=False))
    assert grown > 3
    found = restored(tokenizer, messages, known(written, (count, len(written))))
    assert found.tokens[: len(written)] == written
    assert tokenizer.decode(found.tokens) == tokenizer.decode(plain.tokens)
    assert found.boundaries == tuple(b + grown if b > count else b for b in plain.boundaries)
    for end in (OTHER_END, NO_END):  # another end token than the template's
        other = known([*written[:-1], end], (count, len(written)))
        assert restored(tokenizer, messages, other).tokens == (found if end == OTHER_END else plain).tokens, end
    merged = [*start[:-1], *spell(tokenizer, "\n"), *spell(tokenizer, "\n" + ANSWER)]
    twice = restored(tokenizer, [SYSTEM, ASKS, says("\n" + ANSWER), AGAIN], known(merged, (count, len(merged))))
    assert twice.tokens[: len(merged)] == merged, "the line ends before and in the answer are one token as text"
    more = [*found.tokens, *spell(tokenizer, "then"), END]
    again = [*messages, says("then"), ASKS]
    both = known(more, (count, len(written)), (len(found.tokens), len(more)))
    assert restored(tokenizer, again, known(written, (count, len(written))), both).tokens[: len(more)] == more


def test_what_is_not_the_same_stays(tokenizer: Any) -> None:
    """Nothing else is replaced: where a text differs, and where only the name of a control token is the same."""
    start = render(tokenizer, [SYSTEM, ASKS]).tokens
    count, letters = len(start), spell(tokenizer, ANSWER)
    whole = known([*start, *letters, END], (count, count + len(letters) + 1))
    the = (count, count + 3)
    spelled = spell(tokenizer, "<think>" + ANSWER)
    asked = render(tokenizer, [SYSTEM, AGAIN]).tokens
    size = len(tokenizer.encode(AGAIN["content"], add_special_tokens=False))
    (question,) = [i for i in range(len(asked)) if tokenizer.decode(asked[i : i + size]) == AGAIN["content"]]
    asked[question : question + size] = spell(tokenizer, AGAIN["content"])
    cases: dict[str, tuple[list[dict[str, Any]], PrefixInfo]] = {
        "the answer was changed at its end": ([SYSTEM, ASKS, says(ANSWER[:-1] + "\t"), AGAIN], whole),
        "the answer was cut": ([SYSTEM, ASKS, says(ANSWER[:-3]), AGAIN], whole),
        "the client went on within a token": ([SYSTEM, ASKS, says("there"), AGAIN], known([*start, *letters[:3]], the)),
        "another question": ([SYSTEM, AGAIN, says(ANSWER), AGAIN], whole),
        "another system prompt": ([ASKS, says(ANSWER), AGAIN], whole),
        "the model spelled a control token": (
            [SYSTEM, ASKS, says("<think>" + ANSWER), AGAIN],
            known([*start, *spelled, END], (count, count + len(spelled) + 1)),
        ),
        "the model wrote a control token": (
            [SYSTEM, ASKS, says("<|endoftext|>" + ANSWER), AGAIN],
            known([*start, 0, *letters, END], (count, count + len(letters) + 2)),
        ),
        "a token that is a part of a character": (
            [SYSTEM, ASKS, says("\ufffd" + ANSWER), AGAIN],
            known([*start, *tokenizer.encode("\u00e9")[:1], *letters], (count, count + len(letters) + 1)),
        ),
        "what the model did not write": ([SYSTEM, ASKS, says(ANSWER), AGAIN], known([*start, *letters, END])),
        "written by the user": (
            [SYSTEM, AGAIN, says(ANSWER), ASKS],
            known([*asked, *letters, END], (len(asked), len(asked) + len(letters) + 1)),
        ),
    }
    for name, (messages, info) in cases.items():
        assert restored(tokenizer, messages, info) == render(tokenizer, messages), name
    messages = [SYSTEM, ASKS, says(ANSWER), AGAIN]
    found = len(restored(tokenizer, messages, whole).tokens)
    for context in (found, found + 1):
        kept = restored(tokenizer, messages, whole, context=context) == render(tokenizer, messages)
        assert kept == (context == found), "a prompt that fits goes on fitting"
