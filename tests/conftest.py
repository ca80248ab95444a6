"""Fixtures that more than one package's tests use."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

mx.set_default_device(mx.cpu)  # before mlx-lm is imported, which makes its stream then
mx.disable_compile()  # on a CPU a C++ compiler runs for each kind of operations that MLX joins: a second each

from mlxmtp.conversion.convert import Quantization, convert
from mlxmtp.machine import use_device
from tests import tiny
from tests.row_invariance import compares_rows, rows_differ

REPO = Path(__file__).resolve().parent.parent
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background inherits that Ctrl-C is ignored

# -- the device: the CPU, here and in every Python process that the tests start, but for those marked `metal` --------

PIN = str(REPO / "tests" / "pinned_cpu")
"""Folder of a module that pins a process to the CPU. An explicit `--device gpu` still moves it."""
NOT_JOINED = {"MLX_DISABLE_COMPILE": "1"}
"""The environment in which a process's MLX joins no operations."""
for name in NOT_JOINED:
    os.environ.pop(name, None)  # a worker of pytest-xdist is such a process; reports name this switch
_start = subprocess.Popen.__init__


def _start_pinned(self: Any, *args: Any, env: Mapping[str, str] | None = None, **options: Any) -> None:
    env = {**(os.environ if env is None else env), **NOT_JOINED}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [PIN, env.get("PYTHONPATH")]))
    _start(self, *args, env=env, **options)


subprocess.Popen.__init__ = _start_pinned  # type: ignore[method-assign]


LONGEST = {"test_every_model.py", "test_random_runs.py", "test_load.py", "test_real_engine.py"}
"""Files of few tests that take long: begun last, each would run alone, while the other workers have nothing to do."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files, and mark the tests that compare with passes over one row."""
    items.sort(key=lambda item: item.path.name not in LONGEST)
    for item in items:
        if isinstance(item, pytest.Function) and compares_rows(item.function):
            item.add_marker("exact")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what this machine cannot show, with the reason."""
    if item.get_closest_marker("metal"):  # what the CPU computes says nothing of the GPU
        reason = "" if mx.metal.is_available() else "no Metal GPU"
    else:
        reason = rows_differ() if item.get_closest_marker("exact") else ""
    if reason:
        pytest.skip(reason)


@pytest.fixture(autouse=True)
def _metal(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tests marked `metal` compute on the GPU, with the kernels that MLX joins there."""
    if not request.node.get_closest_marker("metal"):
        yield
        return
    use_device("gpu")
    mx.enable_compile()
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(NOT_JOINED, "MLX_DISABLE_COMPILE")
        yield
    mx.disable_compile()
    use_device("cpu")


@pytest.fixture(scope="session", autouse=True)
def data_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """mlxmtp's data folder, of this process and those that it starts: nothing is kept from, or for, its user."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data")))
        yield


@pytest.fixture(scope="session")
def raw_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`tiny.raw_checkpoint` without its folder: written once a session for each set of options; read only."""
    return cache(lambda kind, **options: tiny.raw_checkpoint(tmp_path_factory.mktemp(kind), kind, **options))


@pytest.fixture(scope="session")
def nextn_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`tiny.nextn_checkpoint` without its folder, as `raw_checkpoint`."""
    return cache(lambda kind, **options: tiny.nextn_checkpoint(tmp_path_factory.mktemp(kind), kind, **options))


@pytest.fixture(scope="session")
def hybrid_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`tiny.hybrid_checkpoint` without its folder, as `raw_checkpoint`."""
    return cache(lambda kind, **options: tiny.hybrid_checkpoint(tmp_path_factory.mktemp(kind), kind, **options))


@pytest.fixture(scope="session")
def nextn_conversion(
    nextn_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """What `convert` makes of a `nextn_checkpoint`, trunk and head in `bits`; as `raw_checkpoint`."""

    def write(kind: tiny.NextNKind, bits: int, **options: Any) -> Path:
        packing = Quantization(bits=bits, group_size=32)
        return convert(
            nextn_checkpoint(kind, **options),
            tmp_path_factory.mktemp("mlx") / "mlx",
            quantization=packing,
            head_bits=bits,
        ).folder

    return cache(write)


@pytest.fixture(scope="session")
def layer_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`tiny.layer_checkpoint` without its folder, as `raw_checkpoint`."""
    return cache(lambda kind, **options: tiny.layer_checkpoint(tmp_path_factory.mktemp(kind), kind, **options))


@pytest.fixture(scope="session")
def several_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`tiny.several_checkpoint` without its folder, as `raw_checkpoint`."""
    return cache(lambda kind, **options: tiny.several_checkpoint(tmp_path_factory.mktemp(kind), kind, **options))


@pytest.fixture(scope="session")
def gemma_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`tiny.gemma_checkpoint` without its folder, as `raw_checkpoint`."""
    return cache(lambda *kind, **options: tiny.gemma_checkpoint(tmp_path_factory.mktemp("gemma4"), *kind, **options))


@pytest.fixture(scope="session")
def assistant(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`tiny.assistant` without its folder, as `raw_checkpoint`."""
    return cache(lambda **options: tiny.assistant(tmp_path_factory.mktemp("assistant"), **options))


@pytest.fixture(scope="session")
def mlx_conversion(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`tiny.mlx_conversion` without `dest`: written once a session for each set of options; read only."""
    return cache(lambda source, **options: tiny.mlx_conversion(source, tmp_path_factory.mktemp("mlx"), **options))
