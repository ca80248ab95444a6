"""The threads that ran a model end before the interpreter does.

MLX keeps the functions that it compiled for each thread, with Python objects in them, and frees them when the thread
ends. Up to Python 3.12, joining a thread does not wait for that. If the interpreter is gone by then, glibc unwinds the
thread through MLX's destructor, and the process aborts: "terminate called without an active exception".
"""

import atexit
import threading
import time
from pathlib import Path

PATIENCE_S = 5.0
"""Seconds that the end of the process waits for threads. One takes milliseconds, if it gets the processor."""
_TASKS = Path("/proc/self/task")
"""Linux's list of this process's threads. Other systems have none, and do not unwind a thread that ends."""
_users: set[int] = set()


def note_thread() -> None:
    """Remember this thread as one that MLX computes for."""
    _users.add(threading.get_native_id())


@atexit.register  # after threading has joined the threads of pools
def wait_for_ended_threads() -> None:
    """Wait until threads that Python has ended are gone for the system too."""
    ended = _users - {thread.native_id for thread in threading.enumerate()}
    deadline = time.monotonic() + PATIENCE_S
    while any((_TASKS / str(thread)).exists() for thread in ended) and time.monotonic() < deadline:
        time.sleep(0.001)
