"""`mlxmtp completion`: a shell's completion of commands, options, choices and models, made from the parser."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from shlex import quote

from mlxmtp.terminal import say

SHELLS = ("bash", "zsh", "fish")
MODEL_METAVARS = ("PATH|REPO", "REPO", "TRUNK", "SOURCE", "ORIGINAL")
"""What an argument's metavar is where it takes a model."""


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "completion",
        help="print the completion for a shell",
        description="Print a script that completes commands, options, their choices, and models of the Hub cache.",
        epilog="Example:\n  mlxmtp completion bash > ~/.local/share/bash-completion/completions/mlxmtp\n"
        "  mlxmtp completion zsh > ~/.mlxmtp.zsh  # and in ~/.zshrc: source ~/.mlxmtp.zsh\n"
        "  mlxmtp completion fish > ~/.config/fish/completions/mlxmtp.fish",
    )
    command.add_argument("shell", choices=SHELLS)
    command.set_defaults(run=run, commands=commands)


def run(arguments: argparse.Namespace) -> int:
    """Print the script, and return the exit code."""
    say(script(arguments.shell, arguments.commands))
    return 0


@dataclass(frozen=True)
class Completion:
    """How an argument is completed.

    Args:
        names: the option's; empty: it is positional.
        kind: "flag", "words", "model" or "file".
        words: the choices.
    """

    names: tuple[str, ...]
    kind: str
    words: tuple[str, ...] = ()


def completions_of(command: argparse.ArgumentParser) -> Iterator[Completion]:
    """Yield a completion for each argument of a command that its help shows."""
    for action in command._actions:
        names = tuple(action.option_strings)
        if action.help == argparse.SUPPRESS:
            continue
        if action.nargs == 0:
            yield Completion(names, "flag")
        elif action.choices:
            yield Completion(names, "words", tuple(map(str, action.choices)))
        else:
            yield Completion(names, "model" if action.metavar in MODEL_METAVARS else "file")


def script(shell: str, commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> str:
    """Return the script for a shell."""
    table = {name: list(completions_of(command)) for name, command in commands.choices.items()}
    if shell == "fish":
        return "\n".join([FISH, *fish_lines(table)])
    body = "\n".join(f"    {line}" for line in cases(table))
    text = BASH.replace("@COMMANDS@", " ".join(table)).replace("@CASES@", body)
    return f"{ZSH}\n{text}" if shell == "zsh" else text


def cases(table: dict[str, list[Completion]]) -> Iterator[str]:
    """Yield the branches of bash's `case` over COMMAND:WORD-BEFORE; an option's value first."""
    for name, found in table.items():
        options = [option for one in found for option in one.names]
        for one in found:
            if one.names and one.kind != "flag":
                yield f"{'|'.join(f'{name}:{option}' for option in one.names)}) {bash_values(one)} ;;"
        positional = next((bash_values(one) for one in found if not one.names), ":")
        yield f"{name}:*) if [[ $cur == -* ]]; then words={quote(' '.join(options))}; else {positional}; fi ;;"


def bash_values(one: Completion) -> str:
    """Return what sets `words` and `files` for an argument's value."""
    if one.kind == "words":
        return f"words={quote(' '.join(one.words))}"
    return "words=$(_mlxmtp_models); files=1" if one.kind == "model" else "files=1"


def fish_lines(table: dict[str, list[Completion]]) -> Iterator[str]:
    """Yield fish's `complete` lines."""
    yield f"complete -c mlxmtp -f -n __fish_use_subcommand -a {quote(' '.join(table))}"
    for name, found in table.items():
        for one in found:
            line = f"complete -c mlxmtp -n {quote(f'__fish_seen_subcommand_from {name}')}"
            for option in one.names:
                line += f" -l {option[2:]}" if option.startswith("--") else f" -s {option[1:]}"
            if one.kind != "flag" and one.names:
                line += " -r"
            if one.kind == "words":
                line += f" -f -a {quote(' '.join(one.words))}"
            elif one.kind == "model":
                line += " -a '(__mlxmtp_models)'"
            if one.names or one.kind != "file":
                yield line


BASH = r"""# the models of the Hub cache, found by the names of its folders
_mlxmtp_models() {
    local cache=${HF_HUB_CACHE:-${HUGGINGFACE_HUB_CACHE:-${HF_HOME:-${XDG_CACHE_HOME:-$HOME/.cache}/huggingface}/hub}}
    local folder
    echo demo
    for folder in "$cache"/models--*--*/; do
        folder=${folder%/}
        folder=${folder##*/models--}
        case $folder in (*[!A-Za-z0-9._-]*) continue ;; esac
        echo "${folder/--//}"
    done
}

_mlxmtp() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} command=${COMP_WORDS[1]} words= files=
    COMPREPLY=()
    if [[ $COMP_CWORD -eq 1 ]]; then
        COMPREPLY=($(compgen -W "@COMMANDS@ --help --version" -- "$cur"))
        return
    fi
    case $command:$prev in
@CASES@
    esac
    [[ $words ]] && COMPREPLY=($(compgen -W "$words" -- "$cur"))
    if [[ $files ]]; then
        local file
        while IFS= read -r file; do COMPREPLY+=("$file"); done < <(compgen -f -- "$cur")
        compopt -o filenames 2>/dev/null
    fi
}

complete -F _mlxmtp mlxmtp"""

ZSH = "autoload -Uz +X compinit bashcompinit && { whence compdef >/dev/null || compinit; } && bashcompinit"

FISH = r"""function __mlxmtp_models
    set -l cache ~/.cache/huggingface/hub
    set -q XDG_CACHE_HOME; and set cache $XDG_CACHE_HOME/huggingface/hub
    set -q HF_HOME; and set cache $HF_HOME/hub
    set -q HUGGINGFACE_HUB_CACHE; and set cache $HUGGINGFACE_HUB_CACHE
    set -q HF_HUB_CACHE; and set cache $HF_HUB_CACHE
    echo demo
    for folder in $cache/models--*--*/
        string replace -r '.*/models--(.*?)--(.*)/$' '$1/$2' -- $folder
    end
end"""
