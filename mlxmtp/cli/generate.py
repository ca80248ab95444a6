"""`mlxmtp generate`: one prompt in, the model's text out."""

from __future__ import annotations

import argparse
import json
import os
import sys
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import mlxmtp
from mlxmtp.cli import options, statistics
from mlxmtp.cli.progress import LoadProgress, PrefillProgress
from mlxmtp.engine.request import GenerationOptions, recommended_in_words
from mlxmtp.errors import MlxmtpError, PromptError
from mlxmtp.machine import memory_warning
from mlxmtp.ranks import Ranks
from mlxmtp.ranks.leader import lead
from mlxmtp.ranks.mpi import mpi_launcher, started_by_mpi
from mlxmtp.terminal import say

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlxmtp import Chunk, Engine


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "generate",
        help="complete a prompt or answer a message",
        description="Answer a message, or with --raw complete a text. The text goes to standard output,\n"
        "statistics to standard error.",
        epilog="Example:\n  mlxmtp generate --model ./Qwen3.5-4B --prompt 'Why is the sky blue?' --temp 0.7",
    )
    add_arguments(command)
    command.set_defaults(run=run)


def add_arguments(command: argparse.ArgumentParser, prompt: str | None = None) -> None:
    """Add the options of one turn; `prompt` is the default, None makes --prompt required."""
    add, add_hidden = command.add_argument, options.for_experiments(command)
    add(
        "--model",
        metavar="PATH|REPO",
        help="a model folder or a Hugging Face repo (default: the bundled demo)",
    )
    where = "take the MTP head from here (default: the model's own, or the one published for a model of its name)"
    add("--head", metavar="PATH|REPO", help=where)
    message = "the message; - reads it from standard input"
    add("--prompt", metavar="TEXT|-", default=prompt, required=prompt is None, help=message)
    add("--raw", action="store_true", help="continue the prompt as it is, without the chat template")
    add(
        "--max-tokens",
        metavar="N",
        type=options.at_least(1),
        default=256,
        help="at most N tokens (default: 256)",
    )
    add("--stop", metavar="S", action="append", default=[], help="stop before this text; may be repeated")
    add("--json", action="store_true", help="print one JSON object with text, tokens and statistics")

    options.add_device(add)
    options.add_ranks(command)
    options.add_sampling(command.add_argument_group("sampling").add_argument)
    speculation = command.add_argument_group("speculation")
    depth = speculation.add_mutually_exclusive_group()
    depth.add_argument("--depth", metavar="N", type=options.depth, help="drafts a round; 0: plain (default: auto)")
    depth.add_argument("--no-mtp", action="store_true", help="decode plainly, one token a pass")
    add_hidden(
        "--verify",
        choices=("token", "block", "seeded"),
        help="how drafts are verified when sampling (default: seeded with --seed, else block)",
    )
    options.add_identity(speculation.add_argument)
    options.add_draft_vocab(add_hidden)


def run(arguments: argparse.Namespace) -> int:
    chosen_options(arguments, {})  # a value out of range is refused before the model is loaded
    hosts = options.ranks(arguments)
    if hosts and hosts.backend == "mpi" and not started_by_mpi():
        command = [*mpi_launcher(hosts), sys.executable, "-P", "-m", "mlxmtp", *sys.argv[1:]]
        os.execv(command[0], command)
    with lead(hosts) if hosts else nullcontext() as ranks:
        if ranks and not ranks.leads:
            from mlxmtp.engine.follow import follow

            return follow(ranks)
        prompt = read_prompt(arguments.prompt)
        if not prompt:
            raise PromptError("the prompt is empty; give a text, or - to read one from standard input")
        return load_and_answer(prompt, ranks, arguments)


def load_and_answer(prompt: str, ranks: Ranks | None, arguments: argparse.Namespace) -> int:
    """Load the model, answer, and return 0."""
    with LoadProgress(sys.stderr) as loading:
        engine = mlxmtp.load(
            arguments.model,
            identity=arguments.identity,
            device=arguments.device,
            on_check=loading.update,
            ranks=ranks,
            **options.head(arguments),
        )
        if engine.head and not arguments.no_mtp and arguments.depth != 0:
            engine.guarantee  # noqa: B018 - measured now, so that the answer is not interrupted
    import mlx.core as mx

    from mlxmtp.engine.recommended import recommended_sampling

    if warning := memory_warning(mx.get_active_memory()):
        statistics.warn(warning)
    recommended = recommended_sampling(engine.path, statistics.warn)
    if words := recommended_in_words(recommended, options.sampling(arguments)):
        say(f"mlxmtp: sampling as the model recommends: {words}", out=sys.stderr)
    generation = chosen_options(arguments, recommended)
    return answer(engine, prompt, generation, arguments)


def answer(engine: Engine, prompt: str, generation: GenerationOptions, arguments: argparse.Namespace) -> int:
    """Write one turn to standard output as it is generated, then its statistics to standard error; return 0."""
    chunks: list[Chunk] = []
    try:
        for chunk in stream(engine, prompt, generation, raw=arguments.raw):
            chunks.append(chunk)
            if not arguments.json:
                say(chunk.text, end="")
    except (KeyboardInterrupt, MlxmtpError):
        if chunks:  # show what was generated
            show(engine, chunks, generation, arguments)
        raise
    show(engine, chunks, generation, arguments)
    return 0


def chosen_options(arguments: argparse.Namespace, recommended: dict[str, Any]) -> GenerationOptions:
    """Return the options of the turn. `recommended` holds where the command line leaves a field out.

    Raises:
        OptionError: a value is out of range.
    """
    return GenerationOptions(
        **recommended | options.sampling(arguments),
        verify=arguments.verify,
        depth=0 if arguments.no_mtp else arguments.depth,
        max_tokens=arguments.max_tokens,
        stop=arguments.stop,
    )


def read_prompt(prompt: str) -> str:
    """Return the text of the prompt, for `-` from standard input, unchanged.

    Raises:
        PromptError: not UTF-8.
    """
    try:
        if prompt != "-":
            prompt.encode()  # bytes that are not UTF-8 arrive as lone surrogates, which no tokenizer takes
            return prompt
        if sys.stdin.isatty():
            say("Type the prompt; Ctrl-D ends it.", out=sys.stderr)
        return sys.stdin.buffer.read().decode()
    except UnicodeError as error:
        raise PromptError(f"the prompt is not UTF-8 text ({error}); convert it first") from error


def stream(engine: Engine, prompt: str, generation: GenerationOptions, *, raw: bool) -> Iterator[Chunk]:
    """Yield the engine's chunks; show the progress of the prompt until the first one."""
    with PrefillProgress(sys.stderr) as progress:
        for chunk in engine.stream(prompt, generation, raw=raw, on_prefill=progress.update):
            progress.close()
            yield chunk


def show(engine: Engine, chunks: list[Chunk], generation: GenerationOptions, arguments: argparse.Namespace) -> None:
    """Print what follows the text: a warning, if any, and the statistics; with --json, the whole object."""
    plain = engine.plain_because or ("--depth is 0" if arguments.depth == 0 else None)
    text = "".join(chunk.text for chunk in chunks)
    if text and not text.endswith("\n") and not arguments.json:
        say("")
    if warning := engine.fit.warning():
        statistics.warn(warning)
    if arguments.json:
        say(json.dumps(statistics.as_json(engine, chunks, plain, arguments.depth), ensure_ascii=False))
        return
    say(statistics.as_text(engine, chunks[-1], plain, arguments.depth, chosen=generation.deterministic), out=sys.stderr)
