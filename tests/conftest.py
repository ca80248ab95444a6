"""Fixtures that more than one package's tests use."""

import signal
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from mlxmtp.conversion.convert import Quantization, convert
from tests import tiny

REPO = Path(__file__).resolve().parent.parent
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background inherits that Ctrl-C is ignored


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
