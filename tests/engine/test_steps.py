"""Whole steps on the CPU: recorded, they are the loop's own, and nothing holds them for longer."""

from __future__ import annotations

import copy
import pickle
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdiff import DynamicThresholding
from fastdiff.engine import accelerate
from fastdiff.engine.graphs import MOST_GRAPHS
from fastdiff.engine.steps import Step
from fastdiff.ops import _library, use_reference
from tests.engine.test_accelerate import made
from tests.engine.test_graphs import LABELS, NO_LABELS, RUNS, SHAPE, drawn, eager

pytestmark = pytest.mark.skipif(
    _library.native_path() is None, reason="the native library runs programs"
)


def runs() -> int:
    return _library.native_calls("program", "CPU")


def steps_of(fast: Any) -> list[Step[Any]]:
    return [*fast.graphs._kept.values()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "options"), RUNS)
def test_recorded_steps_are_the_loops_own(
    name: str, options: dict[str, Any], dtype: torch.dtype
) -> None:
    fast = accelerate(made(name).to(dtype))
    for seed in (0, 2**63 + 5):
        before = _library.native_calls("denoise_step_", "CPU")
        found = drawn(fast, seed=seed, sample_index=seed % 7, **options)
        number = 1 if options.get("steps") == 1 else 4
        assert _library.native_calls("denoise_step_", "CPU") == before + number
        assert torch.equal(found, eager(fast, seed=seed, sample_index=seed % 7, **options))
    (step,) = steps_of(fast)
    sorts = isinstance(options.get("clip"), DynamicThresholding)  # and indexes by what it finds
    assert (step._recorded._program is None) == sorts


def test_a_recorded_step_is_one_call() -> None:
    fast = accelerate(made("small"))
    drawn(fast)
    before = runs()
    first = drawn(fast)
    assert runs() == before + 4
    with use_reference("attention_block"):
        assert drawn(fast).shape == first.shape
    assert runs() == before + 4
    handle = fast.plan.parts[0].register_forward_hook(lambda *_: None)
    assert torch.equal(drawn(fast), first) and runs() == before + 4
    handle.remove()
    assert torch.equal(drawn(fast), first) and runs() == before + 8


def test_other_timesteps_and_classes_are_no_other_step() -> None:
    fast = accelerate(made("adm"))
    for steps in ([900, 500, 3], [800, 400, 0]):
        for labels in (LABELS, NO_LABELS):
            options: dict[str, Any] = {"steps": steps, "class_labels": labels}
            assert torch.equal(drawn(fast, **options), eager(fast, **options))
    assert len(steps_of(fast)) == 1
    for number in range(1, 2 * MOST_GRAPHS):
        options = {"steps": number, "class_labels": LABELS}
        assert torch.equal(drawn(fast, **options), eager(fast, **options))
    assert len(steps_of(fast)) == MOST_GRAPHS


def test_labels_of_no_class_are_refused_before_a_recorded_step_reads_them() -> None:
    fast = accelerate(made("adm"))
    drawn(fast, class_labels=LABELS)
    with pytest.raises(ValueError, match="class_labels reach from 4 to 9"):
        drawn(fast, class_labels=torch.tensor([4, 9]))


def test_every_step_is_told_and_an_interrupted_run_leaves_no_trace() -> None:
    fast, told = accelerate(made("small")), list[tuple[int, int]]()
    wanted = drawn(fast, progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]

    def interrupt(done: int, total: int) -> None:
        if done == stop:
            raise KeyboardInterrupt

    for stop in (1, 2, 3):
        with pytest.raises(KeyboardInterrupt):
            drawn(fast, seed=stop, progress=interrupt)
        assert torch.equal(drawn(fast), wanted)


def test_under_whatever_mode_the_first_run_was() -> None:
    fast = accelerate(made("small"))
    with torch.inference_mode():
        found = drawn(fast)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(drawn(fast), found)
    for mode in (torch.no_grad(), torch.inference_mode(), torch.enable_grad()):
        with mode:
            before = runs()
            assert torch.equal(drawn(fast), found)
            assert runs() == before + 4


def test_a_thread_does_not_wait_for_anothers_run() -> None:
    fast = accelerate(made("small"))
    wanted = [drawn(fast, seed=seed) for seed in range(2)]
    within, done = threading.Event(), threading.Event()

    def hold(step: int, total: int) -> None:
        within.set()
        assert done.wait(60)

    with ThreadPoolExecutor() as pool:
        held = pool.submit(drawn, fast, seed=0, progress=hold)
        assert within.wait(60)
        try:
            assert torch.equal(drawn(fast, seed=1), wanted[1])
        finally:
            done.set()
        assert torch.equal(held.result(60), wanted[0])


def test_they_go_with_the_plan() -> None:
    fast = accelerate(made("small"))
    found = drawn(fast)
    assert isinstance(found, Tensor) and found.shape == SHAPE
    step, plan = (weakref.ref(a) for a in (steps_of(fast)[0], fast))
    copies = [copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))]
    assert all(not steps_of(other) for other in copies)
    del fast
    assert step() is None and plan() is None  # at once, not when cycles are collected
    assert all(torch.equal(drawn(other), found) for other in copies)
