"""`mlxmtp serve`: the HTTP server for local coding agents."""

from __future__ import annotations

import argparse
from functools import partial

from mlxmtp.cli import options
from mlxmtp.errors import OptionError


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "serve",
        help="serve a model to coding agents, over OpenAI's and Anthropic's protocols",
        description="An HTTP server for local clients: Chat Completions, Completions, Responses and Anthropic's\n"
        "Messages, with MTP in all of them. `mlxmtp connect` shows the settings of many clients.",
        epilog="Example:\n  mlxmtp serve --model ./Qwen3.5-4B\n  mlxmtp connect codex",
    )
    add, add_hidden = command.add_argument, options.for_experiments(command)
    add("--model", metavar="PATH|REPO", help="a model folder or a Hugging Face repo (default: the bundled demo)")
    add("--head", metavar="PATH|REPO", help="take the MTP head from here")
    how = command.add_mutually_exclusive_group()
    how.add_argument("--depth", metavar="N", type=options.depth, help="drafts a round; 0: plain (default: auto)")
    how.add_argument("--no-mtp", action="store_true", help="do not load the head")
    options.add_device(add)
    options.add_ranks(command)
    options.add_identity(add)
    options.add_draft_vocab(add_hidden)
    add("--host", metavar="ADDRESS", default="127.0.0.1", help="where to listen (default: 127.0.0.1)")
    add("--port", metavar="N", type=options.port, default=8080, help="(default: 8080; 0: any that is free)")
    options.add_api_key(command, "clients must send this key")
    add("--cors", metavar="ORIGIN", action="append", default=[], help="web pages that may ask; '*': all; repeatable")
    allow_host = "a further name of this machine under which clients may ask; repeatable"
    add("--allow-host", metavar="NAME", action="append", default=[], help=allow_host)
    parallel = "requests that are answered at once (default: auto: 4, or fewer where the model or memory allows fewer)"
    add("--parallel", metavar="N|auto", type=options.parallel, help=parallel)
    add("--queue", metavar="N", type=options.at_least(0), default=32, help="so many requests may wait (default: 32)")
    add("--max-body", metavar="BYTES", type=options.size, default="32M", help="the largest request (default: 32M)")
    add("--cache-bytes", metavar="BYTES", type=options.size, help="for the prefix cache (default: half of the rest)")
    add("--cache-dir", metavar="FOLDER", help="keep the prefix cache here across restarts")
    samples = command.add_argument_group("for what requests leave out (default: as the model recommends)")
    samples.add_argument("--temp", metavar="T", type=options.number, help="temperature; 0 is greedy")
    samples.add_argument("--top-p", metavar="P", type=options.number)
    samples.add_argument("--top-k", metavar="K", type=options.at_least(0))
    samples.add_argument("--min-p", metavar="M", type=options.number)
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from mlxmtp.server.main import ServeOptions, serve
    from mlxmtp.worker.process import PROGRAM, WorkerProcess

    sampling = {
        "temperature": arguments.temp,
        "top_p": arguments.top_p,
        "top_k": arguments.top_k,
        "min_p": arguments.min_p,
    }
    hosts = options.ranks(arguments)
    if hosts and hosts.backend == "mpi":
        found = "--hosts: mpirun does not tell its ranks that a server has ended"
        raise OptionError(f"{found}; expected backend ring, jaccl or jaccl-ring")
    program = (*PROGRAM, hosts.to_json()) if hosts else PROGRAM
    serve(
        start=partial(WorkerProcess.start, program),
        options=ServeOptions(
            model=arguments.model,
            identity=arguments.identity,
            device=arguments.device,
            **options.head(arguments),
            depth=arguments.depth,
            host=arguments.host,
            port=arguments.port,
            api_key=options.api_key(arguments.api_key, arguments.api_key_file),
            origins=tuple(arguments.cors),
            hosts=tuple(arguments.allow_host),
            parallel=arguments.parallel,
            queue=arguments.queue,
            max_body=arguments.max_body,
            cache_bytes=arguments.cache_bytes,
            cache_dir=arguments.cache_dir,
            sampling={name: value for name, value in sampling.items() if value is not None},
        ),
    )
    return 0
