"""A progress bar for the terminal: rich's where it is installed, else one line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(label: str = "sampling") -> Iterator[Callable[[int, int], None]]:
    """Yields show(done, total)."""
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ImportError:
        yield _line(label)
        return
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task(label)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _line(label: str) -> Callable[[int, int], None]:
    def show(done: int, total: int) -> None:
        end = "\n" if done == total else ""
        print(f"\r{label} {done}/{total}", end=end, file=sys.stderr, flush=True)

    return show
