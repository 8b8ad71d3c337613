"""A progress bar for the terminal: rich's where it is installed, else one line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress


@contextmanager
def progress_bar(label: str = "sampling") -> Iterator[Callable[[int, int], None]]:
    """Yields show(done, total)."""
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ImportError:
        yield _line(label)
        return
    bar = Progress(console=Console(stderr=True))
    task = bar.add_task(label)
    with from_its_first_step(bar) as update:
        yield lambda done, total: update(task, completed=done, total=total)


@contextmanager
def from_its_first_step(bar: Progress) -> Iterator[Callable[..., None]]:
    """Yields bar.update, with which the bar appears: what is wrong with the arguments would come
    below an empty one."""

    def update(*task: Any, **values: Any) -> None:
        bar.start()
        bar.update(*task, **values)

    try:
        yield update
    finally:
        if bar.live.is_started:
            bar.stop()


def _line(label: str) -> Callable[[int, int], None]:
    def show(done: int, total: int) -> None:
        end = "\n" if done == total else ""
        print(f"\r{label} {done}/{total}", end=end, file=sys.stderr, flush=True)

    return show
