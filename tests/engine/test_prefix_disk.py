"""Conversations that go on after a restart, with several models and processes."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlxmtp import Engine, GenerationOptions, load
from mlxmtp.decoding.sequence import Sequence
from mlxmtp.engine.prefix_disk import MAX_FILE_SNAPSHOTS, MIN_TOKENS, PrefixStore
from mlxmtp.files import unfinished_file
from tests.engine.disk import Disk, answer, flip
from tests.engine.kinds import EVERY, PLENTY, TRAINED, find, words
from tests.grids import cases
from tests.running import prefilled, rounds
from tests.scripted import assert_same_state, snapshot


@pytest.fixture(scope="module", params=cases(EVERY, default=("qwen3_5", "gemma4")))
def engine(request: pytest.FixtureRequest, raw_checkpoint: Callable[..., Path]) -> Engine:
    return find(request.param, raw_checkpoint)


# -- restarts -------------------------------------------------------------------------------------------------


RESTARTS: list[dict[str, Any]] = [{"depth": 3}, {"temperature": 1.0, "seed": 3}, {"depth": 0}]


@pytest.mark.parametrize("options", cases(RESTARTS, default=RESTARTS[:1]), ids=str)
def test_a_conversation_goes_on_after_a_restart(engine: Engine, tmp_path: Path, options: dict[str, Any]) -> None:
    """From its end, and from each of its snapshots."""
    disk = Disk(tmp_path / "new" / "folder", engine)
    prompt, cache = words(engine, 70), disk.cache()
    prompt += [*answer(engine, prompt, cache, **options)[0], *words(engine, 9)]
    cache.close()
    assert cache.nbytes == 0
    assert len(disk.files) == 1
    for changed, least in (
        (prompt, len(prompt) - 9),
        ([*prompt[:66], prompt[66] ^ 1, 3, 4], 65),
        ([*prompt[:33], prompt[33] ^ 1, 3, 4, 5], 30),
    ):
        again = disk.cache()
        tokens, reused = answer(engine, changed, again, **options)
        assert tokens == answer(engine, changed, **options)[0]
        assert reused >= least
        assert again.stats.loaded == 1
    assert disk.warnings == []


def test_restarts_with_drafts_and_without_by_turns(engine: Engine, tmp_path: Path) -> None:
    """A plain turn goes on from a conversation with drafts and leaves what the head has read, and the other way."""
    disk, prompt, drafted_to = Disk(tmp_path, engine), words(engine, 70), 0
    for number, depth in enumerate((3, 0, 0, 3)):
        cache = disk.cache()
        tokens, reused = answer(engine, prompt, cache, depth=depth)
        assert tokens == answer(engine, prompt, depth=depth)[0], number
        cache.close()
        assert (cache.stats.loaded, len(disk.files), disk.warnings) == (bool(number), 1, []), number
        held = len(prompt) - 6 if number and depth == 0 else drafted_to  # all but the new tokens, or the head's
        assert reused >= held > 0 or not number, number
        drafted_to = len(prompt) - 4 if depth else drafted_to
        prompt = [*prompt, *tokens, *words(engine, 6, number)]


@pytest.mark.parametrize("generated", [0, 5])
def test_what_comes_back_is_what_was_written(engine: Engine, tmp_path: Path, generated: int) -> None:
    """To the last bit, snapshots included: after a prompt, and in the middle of a sliding window's ring buffer."""
    disk, prompt = Disk(tmp_path, engine), words(engine, 90)
    one = Sequence(engine.target, engine.mtp)
    one.prefill(prompt, 32, boundaries=[30, 80])
    if generated:
        list(rounds(engine, one, generated, 3))
    store = disk.store()
    store.save(one)
    other = store.load([*one.tokens, 5], engine.target, engine.mtp, 0, drafting=True)
    assert other
    assert (other.tokens, other.offset, other.prefix_info) == (one.tokens, one.offset, one.prefix_info)
    assert_same_state(snapshot(other.cache), snapshot(one.cache))
    changed = [*prompt[:30], prompt[30] ^ 1, *words(engine, 20)]
    position = other.prefix_info.longest_reusable_prefix(changed, drafting=True)
    assert position
    other.rewind(changed, position, drafting=True)
    other.prefill(changed[len(other.tokens) :])
    fresh = prefilled(engine, changed, 3)
    assert_same_state(snapshot(other.cache), snapshot(fresh.cache))
    last = mx.array([changed[-1:]])
    assert mx.array_equal(*(engine.target.forward(last, sequence.cache)[0] for sequence in (other, fresh)))


def test_what_memory_has_no_room_for_comes_back_from_the_disk(hybrid: Engine, tmp_path: Path) -> None:
    disk = Disk(tmp_path, hybrid)
    prompts = [words(hybrid, 70, seed) for seed in range(3)]
    probe = disk.cache()
    answer(hybrid, prompts[0], probe)
    disk.memory = probe.nbytes * 3 // 2
    cache = disk.cache()
    for prompt in prompts:
        answer(hybrid, prompt, cache)
    assert cache.stats.sequences == 1
    for prompt in prompts:
        longer = [*prompt, *answer(hybrid, prompt)[0], 5, 6]
        tokens, reused = answer(hybrid, longer, cache)
        assert (tokens, reused) == (answer(hybrid, longer)[0], len(longer) - 2)
        assert cache.nbytes <= disk.memory
    assert disk.warnings == []


def test_a_conversation_has_one_file(hybrid: Engine, tmp_path: Path) -> None:
    """The newest; one that did not change is not written again."""
    disk, prompt = Disk(tmp_path, hybrid), words(hybrid, 70)
    for step in range(3):
        cache = disk.cache()
        prompt = [*prompt, *answer(hybrid, prompt, cache)[0], 3 + step]
        cache.close()
        assert len(disk.files) == 1
    file = disk.files[0]
    inode = file.stat().st_ino
    cache = disk.cache()
    store: Any = cache._store
    cache.insert(store.load([*prompt], hybrid.target, hybrid.mtp, 0, drafting=True))
    cache.close()
    assert (disk.files, file.stat().st_ino) == ([file], inode)


def test_what_the_head_has_read_is_not_replaced_by_less(tmp_path: Path) -> None:
    """The same tokens, or more, of a turn without drafts do not take the file's place; with drafts they do."""
    engine = load(TRAINED / "glm4_moe")
    disk, prompt = Disk(tmp_path, engine), words(engine, 40)
    store = disk.store()
    for number, (count, drafting, files) in enumerate([(30, False, 1), (30, True, 1), (40, False, 2), (40, True, 1)]):
        sequence = Sequence(engine.target, engine.mtp, drafting=drafting)
        sequence.prefill(prompt[:count])
        store.save(sequence)
        assert len(disk.files) == files, number
    assert disk.warnings == []


def test_a_file_is_not_read_for_a_few_tokens(hybrid: Engine, tmp_path: Path) -> None:
    disk, prompt = Disk(tmp_path, hybrid), words(hybrid, 200)
    cache = disk.cache()
    hybrid.generate(prompt, GenerationOptions(max_tokens=2), prefix_cache=cache, boundaries=[12, 190])
    cache.close()
    again = disk.cache()
    assert answer(hybrid, [*prompt[:12], prompt[12] ^ 1, *words(hybrid, 40)], again)[1] == 0
    assert again.stats.loaded == 0


def test_what_is_not_worth_a_file(hybrid: Engine, tmp_path: Path) -> None:
    """A short conversation, and one with many snapshots."""
    folder, key = tmp_path / "x", hybrid.facts.model_key()
    warnings: list[str] = []
    store = PrefixStore(folder, PLENTY, key, warnings.append)
    for count in (MIN_TOKENS, MIN_TOKENS + 1):
        sequence = Sequence(hybrid.target, hybrid.mtp)
        sequence.prefill(words(hybrid, count), boundaries=range(20, 200, 20))
        store.save(sequence)
        assert any(folder.iterdir()) == (count > MIN_TOKENS)
    loaded = store.load([*sequence.tokens, 5], hybrid.target, hybrid.mtp, 0, drafting=True)
    assert loaded
    assert len(loaded.snapshots) == MAX_FILE_SNAPSHOTS < len(sequence.snapshots)
    assert warnings == []


def test_prompts_are_nobody_elses_to_read(hybrid: Engine, tmp_path: Path) -> None:
    disk = Disk(tmp_path / "made", hybrid)
    disk.written(words(hybrid, 40))
    assert [path.stat().st_mode & 0o077 for path in (disk.folder, *disk.files)] == [0, 0]


def test_the_oldest_files_go(hybrid: Engine, tmp_path: Path) -> None:
    disk = Disk(tmp_path, hybrid)
    prompts = [words(hybrid, 70, seed) for seed in range(4)]
    disk.written(prompts[0])
    nbytes = disk.files[0].stat().st_size
    disk.most = 2 * nbytes + nbytes // 2
    os.utime(disk.files[0], (1, 1))
    for prompt in prompts[1:3]:
        disk.written(prompt)
        assert sum(file.stat().st_size for file in disk.files) <= disk.most
    assert answer(hybrid, [*prompts[0], 5, 6], disk.cache())[1] == 0, "it was the oldest"
    for second, file in enumerate(disk.files):
        os.utime(file, (second, second))
    for prompt in prompts[1:3]:
        assert answer(hybrid, [*prompt, 5, 6], disk.cache())[1] > 0
    disk.most = nbytes // 2
    disk.written(prompts[3])
    assert len(disk.files) == 2, "larger than all the room: for that, nothing goes"


# -- other models ---------------------------------------------------------------------------------------------


def test_two_models_share_a_folder(hybrid: Engine, tmp_path: Path) -> None:
    one, other = Disk(tmp_path, hybrid), Disk(tmp_path, load(TRAINED / "glm4_moe"))
    prompt = words(hybrid, 70)
    one.written(prompt)
    assert answer(other.engine, [*prompt, 5], other.cache())[1] == 0
    other.written(prompt)
    assert len(one.files) == 2
    for disk in (one, other):
        longer = [*prompt, *answer(disk.engine, prompt)[0], 5, 6]
        assert answer(disk.engine, longer, disk.cache())[1] == len(longer) - 2
    assert one.warnings == other.warnings == []


def test_what_a_key_depends_on(
    raw_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = raw_checkpoint("qwen3_5", dtype="float32", vocab=8)
    keys = {}

    def copied(name: str) -> Path:
        shutil.copytree(source, tmp_path / name)  # with their times
        return tmp_path / name

    keys["as it is"] = load(copied("a")).facts.model_key()
    assert load(copied("b")).facts.model_key() == keys["as it is"], "the same files in another position"
    with monkeypatch.context() as patch:
        patch.setenv("MLX_METAL_GPU_ARCH", "applegpu_g13s")
        keys["another GPU's kernels"] = load(tmp_path / "b").facts.model_key()
    keys["without its head"] = load(copied("c"), mtp=False).facts.model_key()
    config = copied("d") / "config.json"
    config.write_text(config.read_text().replace("4096", "4095"))
    keys["another config"] = load(config.parent).facts.model_key()
    weights = next(copied("e").glob("*.safetensors"))
    weights.write_bytes(flip(bytearray(weights.read_bytes()), -2))
    keys["other weights, as many"] = load(weights.parent).facts.model_key()
    for seed in (1, 2):
        head = raw_checkpoint("qwen3_5", dtype="float32", vocab=8, seed=seed)
        keys[f"the head of another folder, {seed}"] = load(tmp_path / "a", head=head).facts.model_key()
    assert len(set(keys.values())) == len(keys)


# -- several processes ----------------------------------------------------------------------------------------


def test_two_caches_on_one_folder(hybrid: Engine, tmp_path: Path) -> None:
    """Each sees what the other writes; a file that the other removed is a file that is not there."""
    disk = Disk(tmp_path, hybrid)
    prompts = [words(hybrid, 70, seed) for seed in range(2)]
    one, other = disk.cache(), disk.cache()
    answer(hybrid, prompts[0], one)
    one.close()
    longer = [*prompts[0], *answer(hybrid, prompts[0])[0], 5, 6]
    tokens, reused = answer(hybrid, longer, other)
    assert (tokens, reused) == (answer(hybrid, longer)[0], len(longer) - 2)
    other.close()
    assert len(disk.files) == 1
    third = disk.cache()
    answer(hybrid, prompts[1], third)
    for file in disk.files:
        file.unlink()
    assert answer(hybrid, [*longer, 5], third)[1] == 0
    third.close()
    assert len(disk.files) == 2
    assert disk.warnings == []


def test_a_file_that_goes_while_it_is_wanted(hybrid: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk, prompt = Disk(tmp_path, hybrid), words(hybrid, 70)
    disk.written(prompt)
    cache = disk.cache()
    store: Any = cache._store
    refresh = store._refresh

    def too_late() -> None:
        refresh()
        for file in disk.files:
            file.unlink()

    monkeypatch.setattr(store, "_refresh", too_late)
    assert answer(hybrid, [*prompt, 5], cache) == (answer(hybrid, [*prompt, 5])[0], 0)
    assert disk.warnings == []


def test_what_a_killed_process_left_is_swept(hybrid: Engine, tmp_path: Path) -> None:
    """And what one that lives is writing is not."""
    disk = Disk(tmp_path, hybrid)
    (tmp_path / ".dead.partial").write_bytes(b"half")
    disk.store()
    assert disk.left() == []
    with unfinished_file(tmp_path, "prefix") as stage:
        disk.cache()
        assert stage.exists()
    assert disk.left() == []
