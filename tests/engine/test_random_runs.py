"""Random conversations in two programs on one folder: whatever came before, a turn is that of mlx-lm's plain decoding.

Tokens, texts, log-probabilities and statistics are compared with mlx-lm's `generate_step` on the same prompt, and the
caches of target and head, bit for bit, with caches that read the same tokens anew.
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, get_state_machine_test, rule
from mlx_lm.models.cache import RotatingKVCache

from mlxmtp import Engine, GenerationOptions, load
from mlxmtp.decoding.sequence import PREFILL_TOKENS, Sequence
from mlxmtp.exactness.guarantee import Guarantee
from mlxmtp.limits import MAX_DEPTH
from mlxmtp.targets import is_trimmable, leaf_caches
from mlxmtp.targets import snapshot as copied
from mlxmtp.targets.patches import window
from mlxmtp.worker.messages import Generate
from tests.engine.kinds import KINDS, PLENTY, folder_of, words
from tests.engine.one_order import ORDERED, attention_of_whole_numbers, read_by_latents
from tests.engine.plain import MOST, Plain
from tests.engine.programs import Answer, Program, Whims
from tests.scripted import assert_same_state, snapshot

SAMPLING = {
    "greedy": {},
    "endless": {"logit_bias": {2: -100.0}},
    "repeated": {"logit_bias": dict.fromkeys((3, 4, 5), 60.0)},
    "penalised": {"repetition_penalty": 1.3, "frequency_penalty": 0.5, "logit_bias": {2: -100.0}},
    "seeded": {"temperature": 1.0, "seed": 5, "logit_bias": {2: -3.0}},
    "filtered": {"temperature": 0.7, "top_p": 0.9, "top_k": 20, "seed": 6, "presence_penalty": 0.5},
    "block": {"temperature": 1.2, "seed": 7, "verify": "block", "logit_bias": {2: -3.0}},
    "token": {"temperature": 1.2, "seed": 8, "verify": "token"},
}
LONGEST = 120
"""Tokens of a conversation after which it gets no further turn."""


@dataclass(frozen=True)
class Ask:
    """How a turn is asked for.

    Args:
        depth: a number, or "auto", or "whims".
        stop: where in the plain answer's text the stop string begins, as a share, and its length; None: no stop string.
        halt: how often the worker asks whether to stop until it is told so; None: never.
        opening: tokens between the newest boundary and the end of the prompt.
    """

    program: int
    depth: Any
    sampling: str
    max_tokens: int
    stop: tuple[float, int] | None
    logprobs: int | None
    halt: int | None
    opening: int
    prefill_tokens: int


ASKS = st.builds(
    Ask,
    program=st.integers(0, 1),
    depth=st.sampled_from(["auto", "whims", "whims", 3, 0, 7]),
    sampling=st.sampled_from([*SAMPLING, "repeated", "repeated"]),
    max_tokens=st.sampled_from([1, 7, MOST, MOST]),
    stop=st.none() | st.tuples(st.floats(0, 1), st.integers(1, 4)),
    logprobs=st.sampled_from([None, 0, 3]),
    halt=st.sampled_from([None, None, None, 1, 3, 4]),
    opening=st.integers(0, 4),
    prefill_tokens=st.sampled_from([64, 16, 2048]),
)
NEW_WORDS = st.tuples(st.sampled_from([0, 0, 1]), st.integers(4, 50), st.integers(0, 30))
"""New words. 0: of the conversation's own past, to be looked up; their number, and which."""


@dataclass(frozen=True)
class Shape:
    """What the conversations of a run have in common.

    Args:
        memory, disk: sequences of 60 tokens that there is room for; None: for all.
        first: tokens that each conversation begins with.
        one_order: the model adds up in one order, however its tokens are read.
        shared: another process writes in the same folders.
    """

    memory: int | None = None
    disk: int | None = None
    first: int = 0
    one_order: bool = False
    shared: bool = False


class Conversations(RuleBasedStateMachine):
    """Two programs and their conversations: each a list of tokens with the boundaries of its turns.

    Where tokens that are read alone give other bits than several, what was reused decides the last bits, and the bits
    of such turns are not compared. `Shape.one_order` takes that away: then all are.

    Args:
        engines: three of one model; a restart takes the one that is free.
        seen: counts what happened, so that a test can say that all of it did.
    """

    def __init__(self, engines: list[Engine], plain: Plain, folder: Path, seen: Counter[str], shape: Shape) -> None:
        super().__init__()
        self.engines, self.plain, self.seen, self.shape = list(engines), plain, seen, shape
        self.first = shape.first
        self.folder = folder / str(seen["runs"])
        seen["runs"] += 1
        one = Sequence(engines[0].target, engines[0].mtp)
        one.prefill(words(engines[0], 60))
        self.room = [PLENTY if many is None else many * one.nbytes for many in (shape.memory, shape.disk)]
        target = engines[0].target
        windows = any(isinstance(leaf, RotatingKVCache) for leaf in target.make_cache())
        self.after_chunk = cache(self.anew)
        self.one_order = shape.one_order or not (windows or target.latent)
        self.talks: list[tuple[list[int], tuple[int, ...]]] = []
        self.programs = [self.start() for _ in range(2)]

    def start(self) -> Program:
        return Program(self.engines.pop(), self.folder, *self.room)

    @rule(
        what=st.sampled_from(["next", "next", "new", "again", "branch", "edit"]),
        which=st.integers(0, 9),
        turns=st.integers(1, 3),
        at=st.floats(0, 0.99),
        restart=st.sampled_from([None, None, None, 0, 1]),
        new=NEW_WORDS,
        ask=ASKS,
    )
    def turn(self, what: str, which: int, turns: int, at: float, restart: int | None, new: Any, ask: Ask) -> None:
        """A turn of a conversation.

        Args:
            what: "next": it goes on; "new": another one begins; "again": the newest turn is asked for once more;
                "branch": a second one goes on from some `turns` ago, and the first one stays; "edit": an earlier token,
                `at` a share of all, is another one, and what came after it stays.
            restart: the program that was ended and started again before; None: neither.
        """
        if restart is not None:
            self.restart(restart)
        number = which % max(len(self.talks), 1)
        if what == "new" or not self.talks:
            number = len(self.talks)
            self.talks.append((words(self.engine, self.first, 1) if self.first else [], ()))
        elif what == "branch":
            self.talks.append(self.back(number, turns))
            number = len(self.talks) - 1
        elif what == "again":
            self.talks[number] = self.back(number, 1)
        elif what == "edit":
            tokens, boundaries = self.talks[number]
            place = int(at * len(tokens))
            other = 3 + (tokens[place] - 2) % (self.engine.target.vocab_size - 3)
            self.talks[number] = [*tokens[:place], other, *tokens[place + 1 :]], boundaries
        self.ask(number, [] if what == "again" and self.talks[number][0] else new, ask)

    def restart(self, which: int) -> None:
        """A program ends, and a new one with an engine of its own finds its folder."""
        program = self.programs[which]
        program.end()
        assert program.warnings == []
        self.engines.insert(0, program.engine)
        self.programs[which] = self.start()
        self.seen["restarts"] += 1

    def teardown(self) -> None:
        for program in self.programs:
            program.end()
            assert program.warnings == []
            assert self.shape.shared or not unfinished(self.folder)

    # -- what the rules share ---------------------------------------------------------------------------------

    @property
    def engine(self) -> Engine:
        return self.programs[0].engine

    def back(self, which: int, turns: int) -> tuple[list[int], tuple[int, ...]]:
        """A conversation at the end of the prompt of some turns ago."""
        tokens, boundaries = self.talks[which]
        left = boundaries[: max(len(boundaries) - turns + 1, 1)]
        return tokens[: left[-1]], left[:-1]

    def new_words(self, new: tuple[int, int, int], past: list[int]) -> list[int]:
        source, count, number = new
        if source == 0 and past:
            start = number * len(past) // 31
            return past[start : start + count]
        return words(self.engines[0], count, number)

    def ask(self, which: int, new: Any, ask: Ask) -> None:
        """Ask for the next turn of a conversation, and compare it."""
        tokens, boundaries = self.talks[which]
        if len(tokens) > self.first + LONGEST:
            tokens, boundaries = tokens[: self.first + LONGEST // 3], ()
        prompt = tokens + (self.new_words(new, tokens) if new else [])
        boundaries = (*boundaries, max(len(prompt) - ask.opening, 1))
        options = self.options(prompt, ask)
        program = self.programs[ask.program]
        before = program.cache.stats
        answer = program.turn(
            Generate(1, prompt, options, list(boundaries), raw=True),
            Whims(len(prompt)) if ask.depth == "whims" else None,
            ask.halt,
            ask.prefill_tokens,
        )
        self.count(before, program, answer)
        one_chunk = answer.reused == 0 and ask.prefill_tokens >= len(prompt) <= min(boundaries)
        exact = self.one_order or one_chunk
        self.check(prompt, options, answer, exact)
        assert program.cache.inserted or not answer.read, "a turn gives its caches back"
        if program.cache.inserted and exact:
            steps = 0 if self.one_order else max(program.cache.inserted.offset - len(prompt) + 1, 0)
            self.check_caches(program.cache.inserted, steps)
        self.talks[which] = prompt + answer.tokens, boundaries

    def options(self, prompt: list[int], ask: Ask) -> GenerationOptions:
        depth = ask.depth if isinstance(ask.depth, int) else None
        sampling: dict[str, Any] = SAMPLING[ask.sampling]
        options = GenerationOptions(**sampling, depth=depth, max_tokens=ask.max_tokens, logprobs=ask.logprobs)
        if ask.stop and options.deterministic:
            text = self.plain.turn(prompt, options).text
            start = int(ask.stop[0] * len(text))
            stop = text[start : start + ask.stop[1]]
            if stop and "\N{REPLACEMENT CHARACTER}" not in stop:
                return GenerationOptions(**sampling, depth=depth, max_tokens=MOST, logprobs=ask.logprobs, stop=stop)
        return options

    def count(self, before: Any, program: Program, answer: Answer) -> None:
        after, seen = program.cache.stats, self.seen
        for name in ("hits", "evictions", "loaded"):
            seen[name] += getattr(after, name) - getattr(before, name)
        seen["turns"] += 1
        seen["halted in the prompt"] += answer.end.reason == "interrupted" and not answer.chunks
        seen["halted in the answer"] += answer.end.reason == "interrupted" and len(answer.chunks) > 0
        if answer.chunks:
            stats = answer.chunks[-1].stats
            seen["looked up"] += stats.looked_up
            seen["looked up, accepted"] += stats.looked_up_accepted
            seen["drafted"] += stats.drafted
            seen["accepted"] += stats.accepted

    def check(self, prompt: list[int], options: GenerationOptions, answer: Answer, exact: bool) -> None:
        """The turn is plain decoding's; a halted one is a part of it."""
        if options.deterministic:
            expected = self.plain.turn(prompt, options)
        else:
            expected = self.plain.forced(prompt, options, answer.tokens)
        count, halted = len(answer.tokens), answer.end.reason == "interrupted"
        assert answer.tokens == expected.tokens[:count]
        assert expected.text.startswith(answer.text)
        if options.logprobs is None:
            assert answer.logprobs == []
        else:
            records = expected.logprobs(options.logprobs)[:count]
            assert [one.token for one in answer.logprobs] == [one.token for one in records]
            assert answer.logprobs == records or not exact
        if not halted:
            assert (count, answer.text) == (len(expected.tokens), expected.text)
            assert answer.end.reason == expected.finish
        if answer.chunks:
            stats = answer.end.stats
            assert stats == answer.chunks[-1].stats
            assert (stats.prompt_tokens, stats.tokens, stats.rounds) == (len(prompt), count, len(answer.chunks))
            assert stats.reused_tokens == answer.reused
            assert answer.read + answer.reused in (len(prompt), len(prompt) - 1), "the last is the first round's"
            assert count <= stats.rounds + stats.accepted + stats.looked_up_accepted <= count + MAX_DEPTH
            assert 0 <= stats.accepted <= stats.drafted
            assert 0 <= stats.looked_up_accepted <= stats.looked_up

    def check_caches(self, sequence: Sequence, steps: int) -> None:
        """Target and head hold what they would hold had they read the tokens anew; so do the snapshots."""
        tokens = sequence.tokens
        assert sequence.offset <= len(tokens) <= sequence.offset + 1
        self.check_position(sequence, "the end", steps)
        for position in sequence.prefix_info.positions[-2:]:
            prompt = [*tokens[: position.offset], *tokens[:2]]
            again = sequence.fork_at(prompt, position, drafting=position.pending > 0)
            self.check_position(again, f"the snapshot at {position.offset}")

    def check_position(self, sequence: Sequence, what: str, steps: int = 0) -> None:
        read = tuple(sequence.tokens[: sequence.offset])
        assert_same_state(snapshot(sequence.cache), self.plain.state(read, steps), f"the target's cache at {what}")
        if sequence.head is None or (sequence.head.has_kv_cache and not sequence.prefix_info.head_offset):
            return
        fresh = self.anew(read[: len(read) - steps])
        for token in read[len(read) - steps :]:
            del fresh.tokens[-1:]
            fresh.prefill([token, 0])
        if sequence._pending and sequence.drafting:
            newest = [one._pending[-1][:, -1:] for one in (sequence, fresh)]
            assert mx.array_equal(*newest), f"the newest hidden state at {what}"
        count = sequence.prefix_info.head_offset
        for one, other in zip(leaf_caches(sequence.head_cache), leaf_caches(fresh.head_cache), strict=True):
            if sequence.head.has_kv_cache and is_trimmable(one):
                entries = [copied(leaf, count).arrays for leaf in (one, other)]
                assert all(map(mx.array_equal, *entries)), f"the head's cache at {what}"

    def anew(self, prompt: tuple[int, ...]) -> Sequence:
        """A sequence that has read these tokens; the first chunk of longer prompts once for all that begin so."""
        fresh = Sequence(self.engine.target, self.engine.mtp)
        if len(prompt) > PREFILL_TOKENS:
            fresh = self.after_chunk(prompt[:PREFILL_TOKENS]).fork()
            del fresh.tokens[-1:]
        fresh.prefill([*prompt[fresh.offset :], 0])
        return fresh


def run(machine: Callable[[], Conversations], examples: int, steps: int, number: int = 0) -> None:
    """Run a machine `examples` times, always the same way for the same number."""
    options = settings(
        max_examples=examples,
        stateful_step_count=steps,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    seed(number)(get_state_machine_test(machine, settings=options))()  # type: ignore[arg-type]


def unfinished(folder: Path) -> list[Path]:
    """The files that a store began and did not end."""
    return [file for file in folder.iterdir() if file.suffix != ".safetensors"]


def several(folder: Path, one_order: bool) -> tuple[list[Engine], Plain]:
    """Three engines of a model, with mlx-lm's plain turns. Their guarantee is known: nothing is measured."""
    engines = [load(folder) for _ in range(3)]
    for engine in engines:
        if one_order:
            read_by_latents(engine.target)
        engine.__dict__["guarantee"] = Guarantee("identical", MAX_DEPTH + 1, 0)
    return engines, Plain(engines[0])


@pytest.fixture(scope="module")
def engines(raw_checkpoint: Callable[..., Path]) -> Callable[[str, bool], tuple[list[Engine], Plain]]:
    return cache(lambda kind, one_order: several(folder_of(kind, raw_checkpoint), one_order))


EVENTS = (
    "halted in the prompt",
    "halted in the answer",
    "restarts",
    "hits",
    "evictions",
    "loaded",
    "accepted",
    "looked up, accepted",
)


SEED = 1
"""Of the default run: with it all of `EVENTS` happen."""


def run_and_count(kind: str, engines: Any, folder: Path, shape: Shape, *amount: int) -> Counter[str]:
    seen: Counter[str] = Counter()
    with pytest.MonkeyPatch.context() as patch:
        if shape.one_order:
            patch.setattr(window, "_attention", attention_of_whole_numbers)
        run(lambda: Conversations(*engines(kind, shape.one_order), folder, seen, shape), *amount)
    return seen


def test_turns_are_plain_ones_whatever_came_before(engines: Any, tmp_path: Path) -> None:
    """Recurrent states, caches that can be cut, and windows; the first run of each is the simplest."""
    seen: Counter[str] = Counter()
    for kind, shape, examples in (
        ("qwen3_5", Shape(1), 3),
        ("glm4_moe", Shape(None, 4), 3),
        ("gemma4", Shape(3, one_order=True), 2),
    ):
        seen += run_and_count(kind, engines, tmp_path / kind, shape, examples, 8, SEED)
    assert all(seen[event] for event in EVENTS), seen


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", KINDS)
def test_prompts_of_more_than_one_chunk(engines: Any, kind: str, tmp_path: Path) -> None:
    """The first chunk is read once for all that begin so, by mlx-lm and by us."""
    seen = run_and_count(kind, engines, tmp_path, Shape(first=PREFILL_TOKENS + 12), 3, 8)
    print(kind, dict(seen))
    assert all(seen[event] for event in ("hits", "accepted", "restarts", "loaded", "halted in the prompt")), seen


@pytest.mark.exhaustive
@pytest.mark.parametrize("one_order", [False, True])
@pytest.mark.parametrize(("number", "kind"), [(number, kind) for number in range(1, 9) for kind in KINDS])
def test_longer_runs(engines: Any, kind: str, number: int, one_order: bool, tmp_path: Path) -> None:
    if one_order and kind not in ORDERED:
        pytest.skip("it has no other order")
    shape = Shape((None, 3, 1, 0)[number % 4], (None, 4)[number % 2], one_order=one_order)
    print(kind, number, dict(run_and_count(kind, engines, tmp_path, shape, 8, 20, number)))


SHARES = """
import sys
from pathlib import Path

from tests.engine.test_random_runs import Shape, run_and_count, several

model, folder = map(Path, sys.argv[1:])
shape = Shape(memory=1, disk=6, one_order=True, shared=True)
print(dict(run_and_count(model, several, folder, shape, 6, 20)))
"""


@pytest.mark.process
@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_that_share_their_folders(raw_checkpoint: Any, kind: str, tmp_path: Path) -> None:
    """Both have the same conversations, so each finds, replaces and evicts files of the other."""
    command = [sys.executable, "-c", SHARES, str(folder_of(kind, raw_checkpoint)), str(tmp_path)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    told = [process.communicate(timeout=900)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    print(kind, *told)
    assert not [file for folder in tmp_path.iterdir() for file in unfinished(folder)]
