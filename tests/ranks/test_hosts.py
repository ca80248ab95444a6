"""Hosts files, and what MLX's backends get of them."""

import json
from pathlib import Path
from typing import Any

import pytest

from mlxmtp.cli import main
from mlxmtp.errors import OptionError
from mlxmtp.ranks import Hosts, local_hosts, read_hosts
from mlxmtp.ranks.mpi import mpi_launcher

RING = {"backend": "ring", "envs": ["MLX_METAL_FAST_SYNCH=1"], "hosts": [
    {"ssh": "mac1", "ips": ["10.0.0.1"]}, {"ssh": "me@mac2.local", "ips": ["10.0.0.2", "10.0.1.2"]}]}  # fmt: skip
JACCL = {"backend": "jaccl", "hosts": [
    {"ssh": "mac1", "ips": ["10.0.0.1"], "rdma": [None, "rdma_en2"]},
    {"ssh": "mac2", "rdma": ["rdma_en3", None]}]}  # fmt: skip


def written(folder: Path, content: Any) -> str:
    file = folder / "hosts.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(file)


def test_backends_get_what_mlx_launch_would_give_them(tmp_path: Path) -> None:
    ring = read_hosts(written(tmp_path, RING))
    assert Hosts.from_json(ring.to_json()) == ring
    mpi = read_hosts(written(tmp_path, RING | {"backend": "mpi"}))
    assert mpi_launcher(mpi)[1:] == ["--backend", "mpi", "--hostfile", str(tmp_path / "hosts.json"), "--"]
    assert (ring.size, ring.description, ring.local) == (2, "2 ranks (ring)", False)
    variables, files = ring.environment()
    assert variables == {"MLX_METAL_FAST_SYNCH": "1"}
    assert json.loads(files["MLX_HOSTFILE"]) == [["10.0.0.1:32323"], ["10.0.0.2:32324", "10.0.1.2:32325"]]
    for backend, more in (("jaccl", {}), ("jaccl-ring", {"MLX_JACCL_RING": "1"})):
        variables, files = read_hosts(written(tmp_path, JACCL | {"backend": backend})).environment()
        assert variables == {"MLX_JACCL_COORDINATOR": "10.0.0.1:32323"} | more
        assert json.loads(files["MLX_IBV_DEVICES"]) == [[None, "rdma_en2"], ["rdma_en3", None]]
    (first,), (second,) = json.loads(local_hosts(2).environment()[1]["MLX_HOSTFILE"])
    assert first != second
    assert first.startswith("127.0.0.1:")


def test_what_is_no_hosts_file_is_refused_in_one_line(tmp_path: Path) -> None:
    first = RING["hosts"][0]
    cases: list[tuple[Any, str]] = [
        ("{", "not JSON"),
        ("\xff\xfe", "not JSON"),
        (7, "hosts.json"),
        ({"backend": "ring"}, "'hosts' is missing"),
        ({"hosts": [first]}, "names 1 hosts"),
        ({"hosts": [first, {"ips": ["10.0.0.2"]}]}, "'ssh' is missing"),
        ({"hosts": [first, "mac2"]}, "hosts.json"),
        ({"hosts": [first, {"ssh": "mac2"}]}, "no ips"),
        ({"hosts": [first, {"ssh": "mac2", "ips": ["mac2"]}]}, "'mac2' does not appear to be"),
        (RING | {"backend": "nccl"}, "backend 'nccl' is none of ring"),
        (RING | {"envs": ["A B=1"]}, "'A B=1'"),
        (RING | {"backend": "jaccl"}, "rdma does not name"),
        (JACCL | {"hosts": JACCL["hosts"][::-1]}, "no ips"),
        *(({"hosts": [first, {"ssh": name, "ips": ["10.0.0.2"]}]}, "not one that ssh can be given")
          for name in ("-oProxyCommand=x", "mac2;ls", "$(ls)", "a b", "", None)),
    ]  # fmt: skip
    for content, why in cases:
        with pytest.raises(OptionError) as refused:
            read_hosts(written(tmp_path, content))
        assert why in str(refused.value), content
        assert "\n" not in str(refused.value), content
    with pytest.raises(OptionError, match=r"nowhere\.json: No such file"):
        read_hosts(str(tmp_path / "nowhere.json"))


def test_the_command_line_refuses_what_cannot_be_shared(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, why in (
        (["-n", "0"], "found 0"),
        (["-n", "65"], "-n is 65"),
        (["--hosts", "/nowhere.json"], "No such file"),
    ):
        try:
            code = main(["generate", "--prompt", "hi", *arguments])
        except SystemExit as end:
            code = int(end.code or 0)
        assert (code, why in capsys.readouterr().err) == (2, True), arguments
