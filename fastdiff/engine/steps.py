"""Whole steps of a run on the CPU, recorded once and run again: what graphs are on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, cast

import torch
from torch import Tensor

from fastdiff.engine.graphs import Graphs, S, copied
from fastdiff.engine.programs import Recorded, undisturbed


class Step(Generic[S]):
    """`advance(state)`, which reads and writes the tensors of a dataclass in place."""

    def __init__(self, state: S) -> None:
        self.state = copied(state)
        self.advance: Callable[[S], None] | None = None  # while a run has it
        self._recorded = Recorded()

    def run(self, times: int, after: Callable[[int], object] | None = None) -> S:
        """Take it so often and return the state; `after` is told how many are done."""
        for done in range(times):
            self._recorded.run(self._step)
            if after is not None:
                after(done + 1)
        return self.state

    def _step(self) -> list[Tensor]:
        assert self.advance is not None
        self.advance(self.state)
        return []


class Steps(Graphs):
    """The steps of a plan by what they were recorded for.

    One thread at a time has them; another, which would wait for the whole run, does without.
    """

    @contextmanager
    def at(self, key: Hashable, advance: Callable[[S], None], state: S) -> Iterator[Any]:
        """The step of `key`, at `state`; as for graphs."""
        with super().at(key, advance, state) as graph:
            step = cast(Step[S] | None, graph)
            if step is None:
                yield None
                return
            step.advance = advance
            try:
                yield step
            finally:
                step.advance = None

    def usable(self) -> bool:
        """Whether a step can be recorded or run now."""
        return undisturbed() and not torch.is_autocast_enabled("cpu")

    @contextmanager
    def _turn(self) -> Iterator[bool]:
        comes = self._one_at_a_time.acquire(blocking=False)
        try:
            yield comes
        finally:
            if comes:
                self._one_at_a_time.release()

    def _new(self, advance: Callable[[S], None], state: S) -> Any:
        return Step(state)
