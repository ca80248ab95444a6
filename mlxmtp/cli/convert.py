"""`mlxmtp convert`: convert a checkpoint to an MLX folder that keeps its head."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from mlxmtp.cli import options
from mlxmtp.cli.progress import ByteProgress
from mlxmtp.cli.statistics import warn
from mlxmtp.errors import CheckpointError, OptionError
from mlxmtp.terminal import say
from mlxmtp.units import size


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "convert",
        help="convert a model to MLX and keep its head",
        description="Convert as mlx-lm does, and store the MTP head beside the model as mtp.safetensors.\n"
        "Stock mlx-lm loads the folder as a plain model.",
        epilog="Example:\n  mlxmtp convert Qwen/Qwen3.6-27B ./Qwen3.6-27B-4bit -q",
    )
    add = command.add_argument
    add("source", metavar="SOURCE", help="a model folder or a Hugging Face repo")
    add("dest", metavar="DEST", type=Path, help="the new folder")
    add("-q", "--quantize", action="store_true", help="quantise the model")
    whole = options.at_least(1)
    add("--bits", metavar="N", type=whole, help="affine: 2, 3, 4, 5, 6 or 8 bits a weight (default: 4)")
    add("--group-size", metavar="N", type=whole, help="affine: 32, 64 or 128 weights share a scale (default: 64)")
    modes = ("affine", "mxfp4", "nvfp4", "mxfp8")
    add("--mode", choices=modes, help="how to quantise; all but affine fix bits and groups (default: affine)")
    head_bits = "bits of the head; 16 does not quantise it (default: 8 with -q, else as it is)"
    add("--head-bits", type=int, choices=(4, 8, 16), help=head_bits)
    dtypes = ("bfloat16", "float16", "float32")
    add("--dtype", choices=dtypes, help="of what is not quantised (default: the model's own)")
    add("--upload-repo", metavar="REPO", help="upload the folder to this Hugging Face repo afterwards")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    quantization_options = (arguments.bits, arguments.group_size, arguments.mode)
    if not arguments.quantize and any(quantization_options):
        raise OptionError("--bits, --group-size and --mode describe --quantize; add -q")
    from mlxmtp.checkpoints import check_tokenizer
    from mlxmtp.checkpoints.hub import check_upload, upload
    from mlxmtp.conversion.convert import Quantization, convert

    if arguments.upload_repo:
        check_upload(arguments.upload_repo)
    quantization = None
    if arguments.quantize:
        quantization = Quantization(arguments.mode or "affine", arguments.bits, arguments.group_size)
    with ByteProgress(sys.stderr, f"Writing {arguments.dest}") as progress:
        done = convert(
            arguments.source,
            arguments.dest,
            quantization=quantization,
            head_bits=arguments.head_bits,
            dtype=arguments.dtype,
            on_bytes=progress.update,
        )
    head = f"head {size(done.head_bytes)}" if done.head_bytes else "no head"
    say(f"{done.folder}: trunk {size(done.trunk_bytes)}, {head}")
    if done.no_head_because:
        warn(f"no head was written: {done.no_head_because}")
    try:
        check_tokenizer(arguments.source, os.listdir(done.folder))
    except CheckpointError as error:
        warn(f"{error}; add it to {done.folder}")
    if arguments.upload_repo:
        say(f"uploaded to {upload(done.folder, arguments.upload_repo)}")
    return 0
