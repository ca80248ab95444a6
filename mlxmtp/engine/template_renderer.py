"""Renders chat templates in a process of its own; `engine.template` starts it as a program.

A template is a program from a checkpoint. Between two steps of Jinja it could be counted and cut; within one step, such
as the text of a list of lists of lists, only the kernel can. The kernel's alarm ends this process after some seconds,
and its limit of the address space lets a step fail that is too large.

Arguments: the fields of `engine.template.Limits`. Standard input is a socket: a job comes as its length (8 bytes) and
marshalled fields, the answer goes as a kind (1 byte), its length and text. The process ends with its input.
"""

import marshal
import resource
import signal
import socket
import sys
import types
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

TEXT, REFUSED, LIMIT = b"t", b"r", b"l"
"""Kinds of answers: the text, the template's own error, what it exceeds."""
MAX_ERROR = 1000
"""Characters of an error that are passed on; a template can raise one of any length."""


def import_renderer() -> Any:
    """Return transformers' function, which mlx-lm calls too.

    The packages' own `__init__` take three times as long to run as what the function needs, and are left out.
    """
    spec = find_spec("transformers")
    [folder] = spec.submodule_search_locations if spec and spec.submodule_search_locations else [""]
    packages = {"transformers": Path(folder), "transformers.utils": Path(folder, "utils")}
    for name, path in packages.items():
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = [str(path)]
    try:
        from transformers.utils.chat_template_utils import render_jinja_template
    except ImportError:  # a version in which it needs them
        for name in [name for name in sys.modules if name.partition(".")[0] == "transformers"]:
            del sys.modules[name]
        from transformers.utils.chat_template_utils import render_jinja_template
    return render_jinja_template


def limit_memory(max_bytes: int) -> None:
    """Let this process have `max_bytes` more than now. macOS has no such limit; there `engine.template` looks."""
    with suppress(OSError, ValueError):
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        limit = pages * resource.getpagesize() + max_bytes
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def answer(render: Any, job: bytes, max_characters: int) -> tuple[bytes, str]:
    """Return the kind and the text of the answer to a job."""
    try:
        template, messages, variables = marshal.loads(job)
        text = render([messages], chat_template=template, **variables)[0][0]
    except MemoryError:
        return LIMIT, "it takes too much memory"
    except RecursionError:
        return LIMIT, "it is nested too deeply"
    except Exception as error:  # templates raise errors of their own
        return REFUSED, str(error)[:MAX_ERROR] or type(error).__name__
    if len(text) > max_characters:
        return LIMIT, f"it writes {len(text):,} characters; expected at most {max_characters:,}"
    return TEXT, text


def main() -> None:
    """Answer jobs until the input ends."""
    seconds = float(sys.argv[1])
    max_bytes, min_characters, growth = map(int, sys.argv[2:])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl+c is the parent's to handle
    link = socket.socket(fileno=0)
    jobs = link.makefile("rb")
    render = import_renderer()
    limit_memory(max_bytes)
    while size := jobs.read(8):
        job = jobs.read(int.from_bytes(size, "big"))
        signal.setitimer(signal.ITIMER_REAL, seconds)  # not handled, so it ends the process
        kind, text = answer(render, job, min_characters + growth * len(job))
        signal.setitimer(signal.ITIMER_REAL, 0)
        content = text.encode(errors="surrogatepass")
        link.sendall(kind + len(content).to_bytes(8, "big") + content)


if __name__ == "__main__":
    main()
