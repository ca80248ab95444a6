"""`mlxmtp chat`: chat with a model in the terminal."""

from __future__ import annotations

import argparse
import sys

from mlxmtp.cli import options
from mlxmtp.engine.request import GenerationOptions
from mlxmtp.errors import OptionError


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "chat",
        help="chat in the terminal, and see how fast it goes and why",
        description="A chat with a local model, and beside it the statistics: tok/s, acceptance by depth, where\n"
        "the time goes. Without --model it asks for one; /help inside shows keys and commands.",
        epilog="Example:\n  mlxmtp chat --model ./Qwen3.5-4B",
    )
    add, add_hidden = command.add_argument, options.for_experiments(command)
    add("--model", metavar="PATH|REPO", help="a model folder or a Hugging Face repo; demo: the bundled one")
    add("--head", metavar="PATH|REPO", help="take the MTP head from here")
    add("--system", metavar="TEXT", default="", help="instructions that stand before the chat")
    add("--max-tokens", metavar="N", type=options.at_least(1), default=4096, help="at most N an answer (default: 4096)")
    options.add_device(add)
    options.add_sampling(add)
    depth = command.add_mutually_exclusive_group()
    depth.add_argument("--depth", metavar="N", type=options.depth, help="drafts a round; 0: plain (default: auto)")
    depth.add_argument("--no-mtp", action="store_true", help="do not load the head")
    options.add_identity(add)
    options.add_draft_vocab(add_hidden)
    resumed = command.add_mutually_exclusive_group()
    resumed.add_argument("--continue", dest="newest", action="store_true", help="go on with the newest chat")
    resumed.add_argument("--resume", metavar="CHAT", help="go on with this one: its id, title or file")
    add("--no-mouse", action="store_true", help="leave the mouse to the terminal")
    command.set_defaults(run=run)


def on_a_terminal() -> bool:
    """Return whether the chat can be drawn. Textual draws on standard error."""
    return sys.stdin.isatty() and sys.stdout.isatty() and sys.stderr.isatty()


def run(arguments: argparse.Namespace) -> int:
    sampling = options.sampling(arguments)
    GenerationOptions(**sampling)
    settings = GenerationOptions(depth=arguments.depth, max_tokens=arguments.max_tokens)
    head = options.head(arguments)
    if not on_a_terminal():
        found = "chat needs a terminal, and standard input, output or error is none"
        raise OptionError(f"{found}; for a file or a pipe: mlxmtp generate --prompt TEXT")
    from mlxmtp_tui import config, sessions
    from mlxmtp_tui.app import run as open_chat
    from mlxmtp_tui.options import ChatOptions

    resumed = sessions.find(arguments.resume) if arguments.resume or arguments.newest else None
    model = arguments.model or (sessions.model_of(resumed) if resumed else None)
    kept, notice = config.load()
    chosen = ChatOptions(
        model=None if model == "demo" else model,
        identity=arguments.identity,
        device=arguments.device,
        **head,
        choose=model is None,
        system=arguments.system,
        settings=settings,
        sampling=kept | sampling,
        notice=notice,
    )
    open_chat(chosen, resumed, mouse=not arguments.no_mouse)
    return 0
