"""Sampling by graphs of steps: what is captured, kept and replayed; the capture itself is faked.

On a GPU test_on_a_gpu.py asks the same of real graphs.
"""

from __future__ import annotations

import copy
import pickle
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdiff import DynamicThresholding, NoiseSchedule, sample
from fastdiff.engine import AcceleratedUNet, accelerate, graphs, unet
from tests.engine.test_accelerate import made

SHAPE = (2, 3, 12, 12)
LABELS = torch.tensor([4, 0])
NO_LABELS = torch.tensor([1, 1])


class Captures:
    """Stands in for the GPU: counts captures and replays, and may fail."""

    def __init__(self) -> None:
        self.made, self.replays = 0, 0
        self.errors: list[Exception] = []

    def captured(
        self, call: Callable[[], None], warm_up: Callable[[], None], pool: object
    ) -> Callable[[], None]:
        for _ in range(graphs.WARM_UPS):
            warm_up()
        if self.errors:
            raise self.errors.pop(0)
        self.made += 1

        def replay() -> None:
            self.replays += 1
            call()

        return replay


class Event:
    """Of a device that is never behind."""

    def record(self) -> None: ...

    def synchronize(self) -> None: ...

    def wait(self) -> None: ...


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> Captures:
    captures = Captures()
    monkeypatch.setattr(graphs, "captured", captures.captured)
    monkeypatch.setattr(graphs, "new_pool", object)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(graphs.Graphs, "usable", lambda self: True)
    monkeypatch.setattr(unet, "graphs_on", graphs.Graphs)
    return captures


def drawn(model: Any, **options: Any) -> Tensor:
    return sample(model, SHAPE, **({"schedule": NoiseSchedule.linear(1000), "steps": 4} | options))


def eager(model: Any, **options: Any) -> Tensor:
    """The same, step by step: a callback sees every step, so none can be replayed."""
    return drawn(model, callback=lambda done: None, **options)


RUNS: list[tuple[str, dict[str, Any]]] = [
    ("small", {"sampler": "ddpm"}),
    ("small", {"sampler": "ddpm", "steps": 1}),
    ("small", {"sampler": "ddim", "clip": DynamicThresholding(0.9)}),
    ("small", {"sampler": "dpm++", "clip": 2.0}),
    ("fourier", {"sampler": "ddim", "eta": 0.5, "steps": [900, 600, 300, 1]}),
    ("small", {"sampler": "ddim", "eta": 0.5, "noise": torch.full(SHAPE, 0.5)}),
    ("adm", {"class_labels": LABELS, "variance_type": "learned_range"}),
    ("adm", {"class_labels": LABELS, "uncond_labels": NO_LABELS, "guidance_scale": 2.0}),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "options"), RUNS)
def test_replayed_steps_are_the_loops_own(
    name: str, options: dict[str, Any], dtype: torch.dtype, captures: Captures
) -> None:
    fast = accelerate(made(name).to(dtype))
    for seed in (0, 2**63 + 5):
        found = drawn(fast, seed=seed, sample_index=seed % 7, **options)
        assert torch.equal(found, eager(fast, seed=seed, sample_index=seed % 7, **options))
    assert captures.made == 1
    assert captures.replays == (2 if options.get("steps") == 1 else 8)


def test_a_run_of_other_timesteps_or_classes_takes_up_the_same_graph(captures: Captures) -> None:
    fast = accelerate(made("adm"))
    for steps in ([900, 500, 3], [800, 400, 0]):
        for labels in (LABELS, NO_LABELS):
            options: dict[str, Any] = {"steps": steps, "class_labels": labels}
            assert torch.equal(drawn(fast, **options), eager(fast, **options))
    assert captures.made == 1


@pytest.mark.parametrize(
    "options",
    [{"steps": 5}, {"clip": 0.5}, {"clip": False}, {"sampler": "ddim"}, {"sampler": "dpm++"}],
)
def test_what_is_captured_with_a_graph_has_its_own(
    options: dict[str, Any], captures: Captures
) -> None:
    fast = accelerate(made("small"))
    drawn(fast)
    assert torch.equal(drawn(fast, **options), eager(fast, **options))
    assert captures.made == 2


def test_a_unet_keeps_its_graphs_until_a_weight_changes(captures: Captures) -> None:
    unet = made("small")
    first = drawn(unet)
    assert torch.equal(drawn(unet), first) and captures.made == 1
    with torch.no_grad():
        unet.conv_out.bias += 1
    assert not torch.equal(drawn(unet), first) and captures.made == 2


def test_graphs_are_few_and_the_longest_unused_goes(captures: Captures) -> None:
    fast = accelerate(made("small"))
    lengths = [*range(1, graphs.MOST_GRAPHS + 1)]
    for steps in [*lengths, 1]:
        drawn(fast, steps=steps)
    assert captures.made == graphs.MOST_GRAPHS
    drawn(fast, steps=graphs.MOST_GRAPHS + 1)  # 2 goes
    drawn(fast, steps=1)
    assert captures.made == graphs.MOST_GRAPHS + 1
    drawn(fast, steps=2)
    assert captures.made == graphs.MOST_GRAPHS + 2


def test_they_go_with_the_plan(captures: Captures, monkeypatch: pytest.MonkeyPatch) -> None:
    # A real replay knows nothing of the function it was captured from, as `captures`' does.
    monkeypatch.setattr(graphs, "captured", lambda call, warm_up, pool: lambda: None)
    fast = accelerate(made("small"))
    drawn(fast)
    graph, plan = (weakref.ref(a) for a in (next(iter(fast.graphs._kept.values())), fast))
    copies = [copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))]
    assert all(not other.graphs._kept for other in copies)
    del fast
    assert graph() is None and plan() is None  # at once, not when cycles are collected


def test_without_a_graph_the_reason_is_told_and_the_images_are_the_same(
    captures: Captures,
) -> None:
    fast = accelerate(made("small"))
    captures.errors = [RuntimeError("operation not permitted\n when stream is capturing")]
    with pytest.warns(RuntimeWarning, match="no CUDA graph .* not permitted when stream"):
        found = drawn(fast)
    assert captures.replays == 0 and torch.equal(found, eager(fast))


def test_out_of_memory_gives_the_other_graphs_back_first(
    captures: Captures, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    fast = accelerate(made("small"))
    drawn(fast, steps=2)
    captures.errors = [torch.OutOfMemoryError("CUDA out of memory")]
    assert torch.equal(drawn(fast, steps=3), eager(fast, steps=3))
    assert captures.made == 2
    drawn(fast, steps=2)
    assert captures.made == 3


def test_threads_take_turns(captures: Captures) -> None:
    fast = accelerate(made("small"))
    wanted = [eager(fast, seed=seed) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        found = [*pool.map(lambda seed: drawn(fast, seed=seed), range(8))]
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert captures.made == 1


def test_an_interrupted_run_leaves_the_graph_for_the_next(captures: Captures) -> None:
    fast = accelerate(made("small"))

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        drawn(fast, progress=interrupt)
    assert torch.equal(drawn(fast), eager(fast)) and captures.made == 1


def test_every_step_is_told_of(captures: Captures) -> None:
    told: list[tuple[int, int]] = []
    drawn(accelerate(made("small")), progress=lambda *done: told.append(done))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)] and captures.replays == 4


def test_what_looks_at_each_step_is_not_replayed(captures: Captures) -> None:
    fast = accelerate(made("small"))

    def noise(draw: int, sample_index: Tensor) -> Tensor:
        return torch.full(SHAPE, 0.5)

    drawn(fast, noise=noise)
    drawn(lambda x, t: fast(x, t))
    handle = fast.plan.parts[0].register_forward_hook(lambda *_: None)
    drawn(fast)
    assert captures.made == 0
    handle.remove()
    drawn(fast)
    assert captures.made == 1


def test_an_empty_batch_needs_no_graph(captures: Captures) -> None:
    fast: AcceleratedUNet = accelerate(made("small"))
    options: dict[str, Any] = {"schedule": NoiseSchedule.linear(1000), "steps": 2}
    assert sample(fast, (0, 3, 12, 12), **options).shape == (0, 3, 12, 12)
    assert captures.made == 0
