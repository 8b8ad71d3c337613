"""The plan for a GPU where there is none: its sums on the CPU, its calls without data."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastdiff import DynamicThresholding, NoiseSchedule
from fastdiff.engine import AcceleratedUNet, accelerate, blocks, unet
from fastdiff.engine.convolution import Cudnn
from fastdiff.models import UNet
from fastdiff.samplers.loop import Run
from fastdiff.samplers.sampling import make_plan
from tests.engine.test_accelerate import CONFIGS, assert_as_exact, inputs, made

SCHEDULE = NoiseSchedule.linear(1000)


def with_cudnns_parts(plain: UNet, monkeypatch: pytest.MonkeyPatch) -> AcceleratedUNet:
    """The plan that a GPU would get, on the CPU."""
    for module in (blocks, unet):
        monkeypatch.setattr(
            module, "convolution", lambda conv, upsample=False: Cudnn(conv, upsample)
        )
    return accelerate(plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_every_config_by_law4(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """oneDNN stands in for cuDNN: what is under test is where biases, sums and times went."""
    plain = made(name).to(dtype)
    x, t, labels = inputs(plain, 3)
    x = x.to(dtype)
    fast = with_cudnns_parts(plain, monkeypatch)
    truth = copy.deepcopy(plain).double()(x.double(), t, labels)
    found = fast(x, t, labels)
    last = {"memory_format": torch.channels_last}
    assert_as_exact(found, plain.to(**last)(x.to(**last), t, labels), truth)  # type: ignore[call-overload]


def without_data(
    name: str, dtype: torch.dtype
) -> tuple[AcceleratedUNet, tuple[Tensor, Tensor, Tensor | None]]:
    """The plan that a GPU would get and its inputs, on the meta device."""
    plain = UNet(**CONFIGS[name]).eval()
    x, t, labels = inputs(plain, 2)
    labels = None if labels is None else labels.to("meta")
    fast = AcceleratedUNet(plain.to("meta", dtype))
    fast.device = torch.device("cpu")  # autocast, which it turns off, knows no meta device
    return fast, (x.to("meta"), t.to("meta"), labels)


class Calls(TorchDispatchMode):
    """Counts convolutions with and without a bias, and sums of whole images."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = op._schema.name.partition("::")[2]
        if name == "conv2d" and args[2:3] not in ((), (None,)):
            name = "conv2d with bias"
        self.counts[name] += 1
        return op(*args, **kwargs or {})


@pytest.mark.parametrize("name", ["small", "adm", "cifar10", "scaled"])
@torch.no_grad()
def test_no_bias_and_no_sum_takes_a_pass_of_its_own(name: str) -> None:
    fast, (x, t, labels) = without_data(name, torch.float32)
    with Calls() as calls:
        fast(x, t, labels)
    counts = calls.counts
    assert counts["conv2d with bias"] == counts["convolution"] == 0
    residuals = [part for part in fast.plan.parts if isinstance(part, blocks.Residual)]
    shortcuts = [part for part in residuals if part.shortcut is not None]
    assert len(residuals) > 5 and counts["conv2d"] > 2 * len(residuals)
    assert counts["add"] == (name == "adm")  # of the class to the time
    # One pass for a block's two or three convolutions, and one for every other convolution.
    assert counts["biased_sum_"] == counts["conv2d"] - len(residuals) - len(shortcuts)


RUNS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("cifar10", {"sampler": "ddpm"}, {"clip": True}),
    ("cifar10", {"sampler": "dpm++"}, {"clip": DynamicThresholding()}),
    ("adm", {"sampler": "ddpm", "variance_type": "learned_range"}, {"learned": True}),
    ("adm", {"sampler": "ddim", "eta": 0.5}, {"guidance_scale": 2.0}),
    ("fourier", {"sampler": "ddim"}, {}),
    ("learned", {"sampler": "ddim"}, {}),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "sampler", "options"), RUNS)
@torch.no_grad()
def test_the_host_reads_nothing_of_a_step(
    name: str, sampler: dict[str, Any], options: dict[str, Any], dtype: torch.dtype
) -> None:
    """A tensor without data raises where a value of it is asked for, as a capture would."""
    visited = torch.arange(980, -1, -20).numpy()
    plan = make_plan(SCHEDULE, visited, **sampler)
    fast, (x, _, labels) = without_data(name, dtype)
    run = Run(
        fast, x.shape, plan, clip=options.get("clip", False),
        learned=options.get("learned", False), device="meta", dtype=dtype,
        guidance_scale=options.get("guidance_scale", 1.0),
        class_labels=labels, uncond_labels=labels if "guidance_scale" in options else None,
    )  # fmt: skip
    start = run.start()
    assert isinstance(fast.plan.parts[0], Cudnn) and start.x.is_meta
    run.step.advance(start)
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        int(start.row[0])
