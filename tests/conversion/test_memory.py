"""`convert` holds one tensor at a time: its memory is that of the largest, not of the model."""

import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mlxmtp.checkpoints.writer import header
from tests import tiny
from tests.tiny.models import Sizes, head_shapes, trunk_shapes
from tests.tiny.raw import split_experts

pytestmark = [pytest.mark.process, pytest.mark.exhaustive]

ROOT = Path(__file__).parents[2]
SIZES = Sizes(
    vocab=64000, hidden=2048, layers=6, heads=16, kv_heads=4, head_dim=128, mlp=6144,
    key_heads=8, value_heads=16, key_dim=128, value_dim=128, num_experts=32, moe_mlp=512,
)  # fmt: skip
CONVERT = """
import resource, sys
from pathlib import Path
from mlxmtp.cli import main
code = main(sys.argv[1:])
status = Path("/proc/self/status")  # ru_maxrss would count the process that started this one
if status.exists():
    peak = next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith("VmHWM"))
else:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(code, peak)
"""


def sparse_checkpoint(folder: Path, shards: int) -> int:
    """A raw Qwen3-Next checkpoint of zeros, which take no disk; returns its bytes."""
    shapes = {
        n if n == "lm_head.weight" else "model." + n: shape for n, shape in trunk_shapes("qwen3_next", SIZES).items()
    }
    shapes |= head_shapes("qwen3_next", SIZES)
    zeros = {name: np.broadcast_to(np.int16(0), shape) for name, shape in shapes.items()}  # views of one number
    shapes = {name: array.shape for name, array in split_experts(zeros).items()}
    names, where, total = sorted(shapes), {}, 0
    folder.mkdir()
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        layout = [(name, "BF16", shapes[name], 2 * math.prod(shapes[name])) for name in names[i::shards]]
        where |= dict.fromkeys(names[i::shards], file)
        with (folder / file).open("wb") as out:
            start = header(layout)
            out.write(start)
            out.truncate(len(start) + sum(nbytes for *_, nbytes in layout))
        total += sum(nbytes for *_, nbytes in layout)
    tiny.write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": where})
    tiny.write_json(folder / "config.json", tiny.config("qwen3_next", SIZES, "bfloat16"))
    tiny.tokenizer(folder, 300)
    return total


def test_two_gigabytes_are_converted_in_less_than_one(tmp_path: Path) -> None:
    assert sparse_checkpoint(tmp_path / "raw", shards=4) > 2e9
    command = [sys.executable, "-c", CONVERT, "convert", str(tmp_path / "raw"), str(tmp_path / "mlx"), "-q"]
    try:
        ran = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=True)
        code, peak = ran.stdout.split()[-2:]
        assert code == "0", ran.stderr
        assert int(peak) < 1e9
        assert {"model.safetensors", "mtp.safetensors"} <= {file.name for file in (tmp_path / "mlx").iterdir()}
    finally:
        shutil.rmtree(tmp_path / "mlx", ignore_errors=True)
