"""Messages are lines: what goes in comes out, and what is none is refused."""

import json
from collections.abc import Iterator

import pytest

from mlxmtp.decoding.stats import Stats
from mlxmtp.engine.request import GenerationOptions
from mlxmtp.errors import MlxmtpError
from mlxmtp.worker.lines import ProtocolError, decode, encode
from mlxmtp.worker.messages import (
    CachedModel,
    CheckProgress,
    Command,
    Compare,
    Comparison,
    Died,
    Download,
    Downloaded,
    Downloading,
    Event,
    Failed,
    Finished,
    Generate,
    ListModels,
    Load,
    Loaded,
    Memory,
    Models,
    PromptProgress,
    Stop,
    Stopped,
    TurnDelta,
    Warned,
)

STATS = Stats(9, 4, 12, 5, 15, 7, 2.4, (0.8, 0.6, 0.0), 0.5, 80.0, 41.5, 0.1, 0.2, 0.05, 2**40, 7, 1)
MEMORY = Memory(2**33, 2**34, 12)
CALL = {"type": "function", "function": {"name": "f", "arguments": {"a": [1, None, 2.5], "ö": {"b": True}}}}
MESSAGES = [
    {"role": "user", "content": "two\nlines, “quotes”, \x00 \u2028 🙂 and half a pair \ud83d"},
    {"role": "assistant", "content": "", "reasoning_content": "hm", "tool_calls": [CALL]},
]
ALL_SET = GenerationOptions(
    temperature=0.7,
    top_p=0.9,
    top_k=40,
    min_p=0.05,
    seed=2**64 - 1,
    frequency_penalty=0.5,
    presence_penalty=-0.5,
    repetition_penalty=1.2,
    logit_bias={7: -1.5, 3: 2.0},
    verify="block",
    depth=0,
    max_tokens=17,
    thinking=False,
    stop=["#", "END"],
    json_schema={"type": "object"},
    logprobs=3,
)

SAID = TurnDelta(3, [["text", "a\nb"], ["thinking", ""], ["tool", "{}"]], STATS, MEMORY)

EXAMPLES: list[Command | Event] = [
    Load(1),
    Load(2, "owner/name", "other/head", False),
    Load(2, cache_bytes=10**9, cache_dir="/somewhere", identity="strict"),
    Generate(3, [], GenerationOptions()),
    Generate(4, MESSAGES, ALL_SET),
    Generate(4, [5, 6, 7], ALL_SET, [2], "<tool_call>", True),
    Compare(5, MESSAGES, GenerationOptions(seed=0, depth=3, thinking=True)),
    ListModels(6),
    Download(7, "owner/name"),
    Download(8, "owner/name", "other/head"),
    Stop(9),
    Loaded(1, "demo", "qwen-mtp", None, None, False, 3, 4096, 2**36, True, 2.25),
    Loaded(1, "owner/name", None, "no head", "other/head", True, 0, 2**31 - 1, 1, False, 0.0),
    PromptProgress(2, 2048, 5000),
    TurnDelta(3, [], STATS, MEMORY),
    SAID,
    Warned(0, "the disk is full"),
    Finished(4, "interrupted", {"role": "assistant", "content": ""}),
    Finished(4, "stop", MESSAGES[1], STATS, MEMORY),
    Comparison(5, 3, 10, 200, [], []),
    Comparison(5, 3, 200, 200, [40.5, 41.0], [60.0, 61.5]),
    Models(6, [], 2**35),
    Models(6, [CachedModel("a/b", 5, None, "plain", "no head"), CachedModel("c/d", 2**40, "nextn", "x", "")], 1),
    CheckProgress(1, 12, 60),
    Downloading(7, "owner/name", 0, 2**40),
    Downloaded(8, "owner/name", None),
    Downloaded(8, "owner/name", "it is large"),
    Stopped(9),
    *(Failed(10, kind, "why") for kind in ("refused", "memory", "failed")),
    Died(11, -9),
    Died(0, 3, "its last\nwords", "not a message"),
]


def kinds(base: type) -> Iterator[type]:
    for kind in base.__subclasses__():
        yield kind
        yield from kinds(kind)


def test_there_is_an_example_of_every_kind() -> None:
    assert {type(example) for example in EXAMPLES} == {*kinds(Command), *kinds(Event)}


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)
def test_a_message_survives_its_line(message: Command | Event) -> None:
    line = encode(message)
    assert (line.count(b"\n"), line[-1:]) == (1, b"\n")
    found = decode(line)
    assert (type(found), found) == (type(message), message)


def test_nested_parts_have_their_types_again() -> None:
    """Equality alone would not tell a tuple that was read as a tuple from one that any code has to convert."""
    found = decode(encode(SAID))
    assert (type(found.stats), type(found.memory)) == (Stats, Memory)
    assert found.stats.acceptance_by_depth == (0.8, 0.6, 0.0)
    assert type(decode(encode(Generate(3, [], GenerationOptions()))).settings) is GenerationOptions


def changed(message: Command | Event, **content: object) -> bytes:
    return json.dumps(json.loads(encode(message)) | content).encode()


NO_MESSAGES = {
    "nothing": b"",
    "an empty line": b"\n",
    "a print": b"Loading weights ...\n",
    "half a message": encode(Load(1))[:-8],
    "two on a line": encode(Load(1)).strip() * 2,
    "not UTF-8": b'{"type": "Load", "id": 1, "model": "\xff"}',
    "a list": b"[1, 2]",
    "a number": b"5",
    "null": b"null",
    "deep brackets": b"[" * 100_000,
    "no type": b'{"id": 1}',
    "another type": b'{"type": "Unload", "id": 1}',
    "a list for a type": b'{"type": [], "id": 1}',
    "no id": b'{"type": "ListModels"}',
    "a field too many": changed(Load(1), colour="red"),
    "a field too few": b'{"type": "Generate", "id": 1, "settings": {}}',
    "a setting too many": changed(Generate(1, [], GenerationOptions()), settings={"colour": "red"}),
    "a setting out of range": changed(Generate(1, [], GenerationOptions()), settings={"depth": 17}),
    "settings that are none": changed(Generate(1, [], GenerationOptions()), settings=5),
    "statistics of another version": changed(SAID, stats={"tokens": 1}),
    "statistics that are none": changed(SAID, stats=[1]),
    "memory of another version": changed(SAID, memory={"active": 1}),
    "models that are none": changed(Models(1, [], 1), models=[5]),
}


@pytest.mark.parametrize("line", NO_MESSAGES.values(), ids=NO_MESSAGES)
def test_a_line_that_is_no_message(line: bytes) -> None:
    with pytest.raises(ProtocolError, match="not a message of this version"):
        decode(line)


def test_the_error_is_one_of_ours_and_short() -> None:
    assert issubclass(ProtocolError, MlxmtpError)
    with pytest.raises(ProtocolError) as error:
        decode(b"x" * 1_000_000)
    assert len(str(error.value)) < 600


def test_what_has_no_place_in_a_message_is_not_sent() -> None:
    with pytest.raises(TypeError, match="has no place in a message"):
        encode(Finished(1, "stop", {"role": "assistant", "content": {1, 2}}))  # type: ignore[arg-type]
