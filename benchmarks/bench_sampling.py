"""One step of sampling by a whole UNet, against what a user could pick instead, on the CPU.

python -m pytest benchmarks/bench_sampling.py -s

A step is the UNet's forward and the reverse step. Peers: diffusers' UNet2DModel of the same weights
with its DDIM step, channels-last; the same compiled with frozen weights; and where openvino is
installed, converted to it. The first call's seconds, compiling and packing counted, are told too.
A peer that takes eight times as long, as PyTorch does with bfloat16 on processors without it, is
timed by one call.
"""

from __future__ import annotations

import copy
import importlib.util
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.interleave import medians
from fastdiff import NoiseSchedule
from fastdiff.engine import accelerate
from fastdiff.models import UNet
from fastdiff.ops import _library, denoise_step
from fastdiff.ops.onednn import onednn_knows
from fastdiff.samplers.sampling import make_plan
from tests.models.unets import CIFAR10, peer, randomised, rms

Step = Callable[[Tensor], Tensor]
T = 500
ROUNDS = {1: 15, 8: 15, 64: 5, 256: 3}  # by batch
IN_A_ROW = {1: 10, 8: 3, 64: 1, 256: 1}  # a run is some fifty steps or more
HOPELESS = 8  # times fastdiff's

MODELS: dict[str, Callable[[], UNet]] = {
    "ddpm-cifar10": lambda: UNet(**{k: v for k, v in CIFAR10.items() if not k.startswith("_")}),
    "adm-64": lambda: UNet.adm(64, channels=128, blocks=2, learn_sigma=False),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("batch", ROUNDS)
@pytest.mark.parametrize("model", MODELS)
@torch.no_grad()
def test_step(benchmark: Any, model: str, batch: int, dtype: torch.dtype) -> None:
    assert _library.native_kernel("conv3x3", "CPU"), "nothing to measure: see doctor"
    torch.manual_seed(0)
    unet = randomised(MODELS[model]()).to(dtype)
    size = unet.config.sample_size
    assert isinstance(size, int)
    x = torch.randn(batch, 3, size, size)

    first: dict[str, float] = {}
    began = time.perf_counter()
    steps = {"fastdiff": ours(unet)}
    output = steps["fastdiff"](x)
    first["fastdiff"] = time.perf_counter() - began
    gate(unet, x[:4].to(dtype))
    for name, make in PEERS.items():
        began = time.perf_counter()
        if (step := make(unet, x)) is None:
            continue
        assert rms(step(x), output) < (1e-4 if dtype == torch.float32 else 0.05)
        first[name] = time.perf_counter() - began
        steps[name] = step

    calls = {name: lambda step=step: step(x) for name, step in steps.items()}
    once = medians(calls, rounds=1, warmup=0)
    slow = {name: s for name, s in once.items() if s > HOPELESS * once["fastdiff"]}
    rivals = {name: call for name, call in calls.items() if name not in slow}
    warmup = 2 if batch < 64 else 1
    seconds = medians(rivals, rounds=ROUNDS[batch], warmup=warmup, in_a_row=IN_A_ROW[batch]) | slow
    benchmark.extra_info["medians_us"] = {name: 1e6 * s for name, s in seconds.items()}
    benchmark.extra_info["first_call_s"] = first
    print(
        "  "
        + "  ".join(f"{n} {1e3 * s:.1f} ms (first {first[n]:.1f} s)" for n, s in seconds.items())
    )
    benchmark.pedantic(calls["fastdiff"], rounds=3 if batch < 64 else 1)


def gate(unet: UNet, x: Tensor) -> None:
    """Law 4 before any timing."""
    truth = UNet(**unet.config.to_dict()).eval().to(x.device).double()
    truth.load_state_dict(unet.state_dict())
    exact = truth(x.double(), T)
    found = accelerate(unet)(x, T)
    # PyTorch's contiguous bfloat16 takes minutes on processors without it.
    plain = copy.deepcopy(unet).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    last = x.contiguous(memory_format=torch.channels_last)
    assert rms(found, exact) <= 2 * rms(plain(last, T), exact)


def ours(unet: UNet) -> Step:
    fast = accelerate(unet)
    schedule, visited = NoiseSchedule.linear(1000), torch.arange(980, -1, -20).numpy()
    ahead = fast.ahead(torch.from_numpy(visited))
    table = torch.from_numpy(make_plan(schedule, visited, "ddim", rederive_eps=False).table)
    row = int((visited == T).argmax())

    def step(x: Tensor) -> Tensor:
        rows = torch.full((1,), row)
        out = fast(x, rows, ahead=ahead)
        return denoise_step(x, out, rows.expand(len(x)), table, clip=1.0).x_prev

    return step


def theirs(model: Callable[..., Any], dtype: torch.dtype) -> Step:
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(steps_offset=0)
    scheduler.set_timesteps(50)

    def step(x: Tensor) -> Tensor:
        out = model(x.to(dtype).contiguous(memory_format=torch.channels_last), torch.tensor(T))
        stepped: Tensor = scheduler.step(out.float(), T, x).prev_sample
        return stepped

    return step


def diffusers(unet: UNet, x: Tensor) -> Step:
    model: Any = peer(unet).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return theirs(lambda x, t: model(x, t, return_dict=False)[0], unet.dtype)


def compiled(unet: UNet, x: Tensor) -> Step | None:
    if not onednn_knows(unet.dtype):
        return None  # minutes of compiling, and its convolutions stay eager's
    from torch._inductor import config

    torch._dynamo.reset()
    config.freezing = True
    model: Any = peer(unet).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    forward = torch.compile(lambda x, t: model(x, t, return_dict=False)[0], dynamic=False)
    return theirs(forward, unet.dtype)


def openvino(unet: UNet, x: Tensor) -> Step | None:
    if importlib.util.find_spec("openvino") is None:
        return None
    import openvino as ov

    model: Any = peer(unet).float()

    class Plain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            out: Tensor = self.model(x, t, return_dict=False)[0]
            return out

    converted = ov.convert_model(Plain().eval(), example_input=(x, torch.tensor(T)))
    precision = "bf16" if unet.dtype == torch.bfloat16 else "f32"
    hints = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
    hints["INFERENCE_NUM_THREADS"] = str(torch.get_num_threads())
    request = ov.Core().compile_model(converted, "CPU", hints).create_infer_request()

    def forward(x: Tensor, t: Tensor) -> Tensor:
        found = request.infer([x.contiguous().numpy(), t.numpy()])
        return torch.from_numpy(next(iter(found.values())).copy())

    return theirs(forward, torch.float32)


PEERS: dict[str, Callable[[UNet, Tensor], Step | None]] = {
    "diffusers": diffusers,
    "compile": compiled,
    "openvino": openvino,
}
