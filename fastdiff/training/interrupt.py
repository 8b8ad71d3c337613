"""Ctrl-C and kill end a run after the step under way."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

# torchrun and batch systems end a process by the second.
SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stop_after_step() -> Iterator[Callable[[], bool]]:
    """Turns the first signal into a flag, so that no step is cut in half; the next one acts."""
    came = False
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False  # Python delivers signals to the main thread alone
        return
    before: dict[int, Any] = {}

    def remember(number: int, frame: FrameType | None) -> None:
        nonlocal came
        came = True
        signal.signal(number, before[number] or signal.SIG_DFL)

    for number in SIGNALS:
        before[number] = signal.signal(number, remember)
    try:
        yield lambda: came
    finally:
        for number in SIGNALS:
            signal.signal(number, before[number] or signal.SIG_DFL)
