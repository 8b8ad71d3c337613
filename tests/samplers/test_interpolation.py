"""Interpolation against geometry, its own ends, and the linear algebra of Gaussian data."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdiff.ops.philox_normal import philox_normal
from fastdiff.samplers import ddim_invert, interpolate_ddim, interpolate_ddpm, sample, slerp
from fastdiff.schedules import NoiseSchedule
from tests.samplers.gaussian_data import best_model, signal_gain

LINEAR = NoiseSchedule.linear(1000)
WEIGHTS = torch.tensor([0.0, 0.25, 0.5, 1.0])


def wavy(x: Tensor, t: Tensor, class_labels: Tensor | None = None) -> Tensor:
    phase = t.to(x) / 150 + (0 if class_labels is None else class_labels)
    return torch.sin(3 * x + phase.view(-1, *[1] * (x.ndim - 1)))


def ends(*shape: int) -> tuple[Tensor, Tensor]:
    return tuple(torch.rand(2, *shape, generator=torch.Generator().manual_seed(0)) * 2 - 1)


def test_slerp_walks_the_circle_evenly() -> None:
    a = torch.tensor([[3.0, 0.0]], dtype=torch.float64)
    b = torch.tensor([[0.0, 3.0]], dtype=torch.float64)
    weights = torch.linspace(0, 1, 7, dtype=torch.float64)
    path = slerp(a, b, weights)[:, 0]
    angles = weights * math.pi / 2
    torch.testing.assert_close(path, 3 * torch.stack([angles.cos(), angles.sin()], 1))


def test_slerp_of_each_sample_is_its_own() -> None:
    a, b = ends(3, 2, 4)
    path = slerp(a, b, WEIGHTS)
    assert path.shape == (4, 3, 2, 4)
    for i in range(3):
        alone = slerp(a[i : i + 1], b[i : i + 1], WEIGHTS)
        torch.testing.assert_close(path[:, i : i + 1], alone)
    torch.testing.assert_close(path[0], a)
    torch.testing.assert_close(path[-1], b)


def test_slerp_of_parallel_ends_is_the_line() -> None:
    a = ends(2, 5)[0]
    path = slerp(a, 3 * a, WEIGHTS)
    torch.testing.assert_close(path, a * (1 + 2 * WEIGHTS).view(-1, 1, 1))


def test_ddim_ends_are_the_ends_samples() -> None:
    a, b = ends(2, 1, 3, 3)
    options: dict[str, Any] = {"schedule": LINEAR, "steps": 10}
    path = interpolate_ddim(wavy, a, b, WEIGHTS, **options)
    assert path.shape == (4, 2, 1, 3, 3)
    for end, got in ((a, path[0]), (b, path[-1])):
        wanted = sample(wavy, end.shape, sampler="ddim", noise=end, **options)
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


def test_ddim_between_two_images_passes_through_both() -> None:
    a, b = ends(2, 1, 3, 3)
    model, options = best_model(LINEAR), {"schedule": LINEAR, "steps": 500}
    latents = [ddim_invert(model, x, **options) for x in (a, b)]
    path = interpolate_ddim(model, *latents, WEIGHTS, clip=False, **options)
    torch.testing.assert_close(path[0], a, rtol=0, atol=0.02)
    torch.testing.assert_close(path[-1], b, rtol=0, atol=0.02)


@pytest.mark.parametrize("shared_noise", [False, True])
def test_ddpm_mixes_what_it_diffused(shared_noise: bool) -> None:
    """From t = 0 the way down is one step, x_0 as predicted: what went up shows plainly."""
    schedule = NoiseSchedule.linear(50, 0.01, 0.3)
    a, b = (x.double() for x in ends(3, 1, 2, 2))
    t, level, index = 0, float(schedule.alphas_cumprod[0]), torch.arange(3) + 6
    noise = [
        philox_normal(a.shape, 5, sample_index=index, draw=draw, stream=1).double()
        for draw in ((0, 0) if shared_noise else (0, 1))
    ]
    x_a, x_b = (
        math.sqrt(level) * x + math.sqrt(1 - level) * z for x, z in zip((a, b), noise, strict=True)
    )
    path = interpolate_ddpm(
        best_model(schedule),
        a,
        b,
        WEIGHTS,
        t=t,
        schedule=schedule,
        shared_noise=shared_noise,
        seed=5,
        sample_index=6,
        clip=False,
        dtype=torch.float64,
    )
    for w, got in zip(WEIGHTS.double(), path, strict=True):
        wanted = signal_gain(level) * ((1 - w) * x_a + w * x_b)
        torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-7)


def test_ddpm_gives_every_weight_the_same_noise() -> None:
    """Between an image and itself, with one noise, nothing varies, save with the seed."""
    a, _ = ends(2, 1, 3, 3)
    options: dict[str, Any] = {"t": 400, "schedule": LINEAR, "steps": 10}
    path = interpolate_ddpm(wavy, a, a, WEIGHTS, shared_noise=True, seed=1, **options)
    for image in path[1:]:
        torch.testing.assert_close(image, path[0], rtol=1e-4, atol=1e-4)
    other = interpolate_ddpm(wavy, a, a, WEIGHTS, shared_noise=True, seed=2, **options)
    assert (other - path).abs().max() > 0.05


def test_labels_go_to_every_weight() -> None:
    a, b = ends(2, 1, 3, 3)
    labels = torch.tensor([0, 2])
    path = interpolate_ddim(wavy, a, b, WEIGHTS, schedule=LINEAR, steps=5, class_labels=labels)
    wanted = sample(
        wavy, a.shape, schedule=LINEAR, sampler="ddim", steps=5, noise=a, class_labels=labels
    )
    torch.testing.assert_close(path[0], wanted, rtol=1e-5, atol=1e-5)


def test_bad_arguments_are_refused() -> None:
    a, b = ends(2, 1, 3, 3)
    with pytest.raises(ValueError, match=r"both be \[N, ...\]; got \[2, 1, 3, 3\] and \[1, 3, 3\]"):
        slerp(a, b[0], WEIGHTS)
    with pytest.raises(ValueError, match=r"weights must be \[W\], got \[\]"):
        interpolate_ddim(wavy, a, b, torch.tensor(0.5), schedule=LINEAR)
    with pytest.raises(ValueError, match=r"start=333 is no timestep.*nearest is 300"):
        interpolate_ddpm(wavy, a, b, WEIGHTS, t=333, schedule=LINEAR, steps=10)
