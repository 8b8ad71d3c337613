"""The progress bar of a run of many images."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fastdiff.samplers.progress import from_its_first_step


@contextmanager
def image_bar(total: int, there: int) -> Iterator[Callable[[float], None]]:
    """Yields show(done), done in images, `there` of them from before: speed and time left."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("sampling"),
        BarColumn(),
        TextColumn("{task.fields[told]}"),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    bar = Progress(*columns, console=Console(stderr=True))
    task = bar.add_task("", total=total, completed=there, told="")
    began = time.perf_counter()

    def show(done: float) -> None:
        speed = (done - there) / (time.perf_counter() - began)
        told = f"{int(done)}/{total} images  {speed:.3g} images/s"
        update(task, completed=done, told=told)

    with from_its_first_step(bar) as update:
        yield show
