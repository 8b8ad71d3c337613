"""A function of tensors on a GPU, captured once as a CUDA graph and replayed."""

from __future__ import annotations

import gc
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor

MOST_GRAPHS = 4  # of a plan; the one unused for longest goes first
WARM_UPS = 2  # calls before the capture: kernels are compiled and libraries choose

S = TypeVar("S")


class Graph(Generic[S]):
    """`advance(state)`, which reads and writes the tensors of a dataclass in place."""

    def __init__(self, advance: Callable[[S], None], state: S, pool: Any) -> None:
        """Capture it on copies of the state's tensors; raises what the capture raises."""
        self.state = copied(state)

        def warm_up() -> None:
            overwrite(self.state, state)
            advance(self.state)

        self._replay = captured(lambda: advance(self.state), warm_up, pool)

    def run(self, times: int, after: Callable[[int], object] | None = None) -> S:
        """Replay it so often and return the state.

        `after` is told how many replays are done, one behind what is launched; without it nothing
        waits for the device.
        """
        before = None
        for done in range(times):
            self._replay()
            if after is not None:
                event = torch.cuda.Event()
                event.record()
                if before is not None:
                    before.synchronize()
                    after(done)
                before = event
        if before is not None and after is not None:
            before.synchronize()
            after(times)
        return self.state


class Graphs:
    """The graphs of a plan by what they were captured for; they share one pool of memory.

    One runs at a time, on whatever thread and stream, and its state lies outside the pool, so the
    pool holds what the largest needs, not all together. Copies and pickles of the plan begin with
    none.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._kept: OrderedDict[Hashable, Graph[Any]] = OrderedDict()
        self._pool: Any = None
        self._one_at_a_time = threading.Lock()
        self._last_run: torch.cuda.Event | None = None

    @contextmanager
    def at(
        self, key: Hashable, advance: Callable[[S], None], state: S
    ) -> Iterator[Graph[S] | None]:
        """The graph of `key`, at `state`; None, with a warning that says why, if none is to be had.

        `advance` must do the same for the same key and shapes of the state's tensors. What the
        graph's state holds is lost after the context.
        """
        key = key, tuple((tensor.shape, tensor.dtype) for tensor in tensors(state))
        with self._turn() as comes:
            graph = (self._kept.pop(key, None) or self._new(advance, state)) if comes else None
            if graph is None:
                yield None
                return
            self._kept[key] = graph
            while len(self._kept) > MOST_GRAPHS:
                self._kept.popitem(last=False)
            overwrite(graph.state, state)
            yield graph

    @contextmanager
    def _turn(self) -> Iterator[bool]:
        """Alone, after all who came before; whether that is to be had."""
        on_cpu = self.device.index is None
        with self._one_at_a_time, torch.cuda.device(-1 if on_cpu else self.device.index):
            if self._last_run is not None:
                self._last_run.wait()
            try:
                yield True
            finally:
                self._last_run = torch.cuda.Event()
                self._last_run.record()

    def usable(self) -> bool:
        """Whether a graph can be captured or replayed now."""
        return self.device.type == "cuda" and not torch.cuda.is_current_stream_capturing()

    def clear(self) -> None:
        """Give all graphs and their memory back."""
        self._kept.clear()
        self._pool = None

    def _new(self, advance: Callable[[S], None], state: S) -> Graph[S] | None:
        try:
            try:
                return self._captured(advance, state)
            except torch.OutOfMemoryError:
                self.clear()
                gc.collect()
                torch.cuda.empty_cache()
                return self._captured(advance, state)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            warnings.warn(
                "sampling launches its kernels one by one: no CUDA graph could be captured "
                f"({type(error).__name__}: {reason})",
                RuntimeWarning,
                stacklevel=2,
            )
            return None

    def _captured(self, advance: Callable[[S], None], state: S) -> Graph[S]:
        if self._pool is None:
            self._pool = new_pool()
        return Graph(advance, state, self._pool)

    def __reduce__(self) -> tuple[type[Graphs], tuple[torch.device]]:
        return type(self), (self.device,)


def captured(
    call: Callable[[], None], warm_up: Callable[[], None], pool: Any
) -> Callable[[], None]:
    """What replays `call` on the current stream."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(WARM_UPS):
            warm_up()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    # Another thread, one that loads data say, may allocate meanwhile.
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        call()
    return graph.replay


def new_pool() -> Any:
    """A pool of GPU memory that graphs may share."""
    return torch.cuda.graph_pool_handle()


def copied(state: S) -> S:
    """The same dataclass with tensors of its own, those in dataclasses within it too."""
    value: Any = state
    if isinstance(value, Tensor):
        with torch.inference_mode(False):  # or none but such a mode could write to it
            value = value.clone()
    elif is_dataclass(value):
        value = replace(value, **{f.name: copied(getattr(value, f.name)) for f in fields(value)})  # type: ignore[type-var]
    return cast(S, value)


def overwrite(state: S, given: S) -> None:
    """Copy the tensors of one state into another's of the same shapes."""
    for mine, theirs in zip(tensors(state), tensors(given), strict=True):
        mine.copy_(theirs)


def tensors(state: Any) -> list[Tensor]:
    """Those in a dataclass, and in dataclasses within it."""
    if isinstance(state, Tensor):
        return [state]
    if is_dataclass(state):
        return [tensor for f in fields(state) for tensor in tensors(getattr(state, f.name))]
    return []
