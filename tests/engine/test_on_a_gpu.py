"""The plan and its graphs of steps on a GPU."""

from __future__ import annotations

import copy
import gc
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdiff import NoiseSchedule, sample
from fastdiff.engine import AcceleratedUNet, accelerate, graphs, planned
from fastdiff.ops import _library
from fastdiff.samplers.loop import Run
from fastdiff.samplers.sampling import make_plan
from tests.engine.test_accelerate import CONFIGS, assert_as_exact, inputs, made
from tests.engine.test_graphs import LABELS, NO_LABELS, RUNS, SHAPE
from tests.models.unets import rms

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
SCHEDULE = NoiseSchedule.linear(1000)
f32, bf16, f16 = torch.float32, torch.bfloat16, torch.float16


def on_the_gpu(*tensors: Tensor | None) -> list[Any]:
    return [None if tensor is None else tensor.cuda() for tensor in tensors]


@pytest.mark.parametrize("dtype", [f32, bf16, f16])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_every_config_by_law4(name: str, batch: int, dtype: torch.dtype) -> None:
    unet = made(name).cuda().to(dtype)
    x, t, labels = on_the_gpu(*inputs(unet, batch))
    x = x.to(dtype)
    before = _library.native_calls("biased_sum_", "CUDA")
    found = accelerate(unet)(x, t, labels)
    assert _library.native_calls("biased_sum_", "CUDA") > before
    truth = copy.deepcopy(unet).double()(x.double(), t, labels)
    assert_as_exact(found, unet(x, t, labels), truth)


@torch.no_grad()
def test_float32_is_float32_unless_tf32_is_asked_for() -> None:
    unet = made("cifar10").cuda()
    x, t, _ = on_the_gpu(*inputs(unet, 2))
    truth = copy.deepcopy(unet).double()(x.double(), t)
    errors = {tf32: rms(accelerate(unet, tf32=tf32)(x, t), truth) for tf32 in (False, True)}
    assert 30 * errors[False] < errors[True]
    before = torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]
    accelerate(unet)(x, t)
    assert torch.backends.cudnn.conv.fp32_precision == before  # type: ignore[attr-defined]


def drawn(model: Any, shape: tuple[int, ...] = SHAPE, **options: Any) -> Tensor:
    options = {key: v.cuda() if isinstance(v, Tensor) else v for key, v in options.items()}
    return sample(model, shape, **({"schedule": SCHEDULE, "steps": 4, "device": "cuda"} | options))


@pytest.mark.parametrize("dtype", [f32, bf16])
@pytest.mark.parametrize(("name", "options"), RUNS)
def test_replayed_steps_are_the_loops_own(
    name: str, options: dict[str, Any], dtype: torch.dtype
) -> None:
    fast = accelerate(made(name).cuda().to(dtype))
    for seed in (0, 2**63 + 5):
        found = drawn(fast, seed=seed, sample_index=seed % 7, **options)
        wanted = drawn(
            fast, seed=seed, sample_index=seed % 7, callback=lambda done: None, **options
        )
        assert len(fast.graphs._kept) == 1 and torch.equal(found, wanted)


def test_no_value_is_read_while_steps_are_replayed() -> None:
    unet = made("adm").cuda()
    model = planned(unet)
    plan = make_plan(SCHEDULE, torch.arange(980, -1, -20).numpy(), "ddpm")
    run = Run(model, SHAPE, plan, clip=True, class_labels=LABELS, device="cuda")
    with model.graphs.at(run.step.key, run.step.advance, run.start()) as graph:
        assert graph is not None
        torch.cuda.set_sync_debug_mode("error")
        try:
            found = graph.run(len(plan.table)).x.clone()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    wanted = [*run.history()][-1].x_prev
    assert torch.equal(found, wanted)


def test_the_images_are_the_cpus() -> None:
    unet = made("adm")
    unet.conv_out.weight.data.mul_(0.3)  # outputs of about unit size, as noise is
    options: dict[str, Any] = {"class_labels": LABELS, "uncond_labels": NO_LABELS, "seed": 3}
    options |= {"sampler": "ddim", "steps": 20, "guidance_scale": 1.5}
    here = sample(unet, SHAPE, schedule=SCHEDULE, **options)
    there = drawn(unet.cuda(), **options)
    torch.testing.assert_close(there.cpu(), here, rtol=1e-3, atol=1e-3)


def test_memory_is_that_of_the_largest_graph_and_goes_with_the_plan() -> None:
    def used() -> int:
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        return torch.cuda.memory_reserved()

    unet = made("cifar10").cuda().to(bf16)
    before = used()
    fast: AcceleratedUNet = accelerate(unet)
    drawn(fast, (64, 3, 32, 32))
    largest = used()
    for batch in (*range(33, 64), 64):
        drawn(fast, (batch, 3, 32, 32))
    assert len(fast.graphs._kept) == graphs.MOST_GRAPHS
    assert used() - before < 1.5 * (largest - before)
    del fast
    assert used() - before < 0.1 * (largest - before)


def test_another_stream_is_no_matter() -> None:
    fast = accelerate(made("small").cuda())
    wanted = drawn(fast)
    with torch.cuda.stream(torch.cuda.Stream()):
        found = drawn(fast)
    torch.cuda.synchronize()
    assert torch.equal(found, wanted)
