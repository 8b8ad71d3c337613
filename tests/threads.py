"""The threads of this process: how many torch computes on, and which Linux lists."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch


@contextmanager
def on_threads(count: int) -> Iterator[None]:
    """Within it torch computes on so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def running(name: str = "") -> set[str]:
    """The numbers of those whose name has this in it."""
    found = set()
    for task in Path("/proc/self/task").iterdir():
        # One that ends while it is read about is not running.
        with suppress(FileNotFoundError, ProcessLookupError):
            if name in (task / "comm").read_text():
                found.add(task.name)
    return found


def soon(holds: Callable[[], bool], seconds: float = 10) -> bool:
    """Whether it comes to hold: Linux lists a thread for a moment more after it was joined."""
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True
