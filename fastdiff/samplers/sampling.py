"""What users call: sample and its kin, each a plan and a walk of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdiff.diffusion import Clip, check_variance_type
from fastdiff.samplers.ddim import ddim_columns, ddim_inverse_columns
from fastdiff.samplers.ddpm import ddpm_columns
from fastdiff.samplers.dpm_solver import dpm_solver_columns
from fastdiff.samplers.loop import Noise, Progress, Run, SampleStep
from fastdiff.samplers.plan import Plan, visited_timesteps
from fastdiff.samplers.step import Model
from fastdiff.schedules import NoiseSchedule

DEFAULT_SPACING = {"ddpm": "leading", "ddim": "leading", "dpm++": "trailing"}
SAMPLERS = tuple(DEFAULT_SPACING)

Steps = int | str | Sequence[int] | None


def sample(
    model: Model,
    shape: Sequence[int],
    *,
    schedule: NoiseSchedule,
    sampler: str = "ddpm",
    steps: Steps = None,
    spacing: str | None = None,
    eta: float = 0.0,
    prediction_type: str = "epsilon",
    variance_type: str = "fixed_small",
    clip: Clip = True,
    rederive_eps: bool = True,
    start: int | None = None,
    seed: int = 0,
    sample_index: int | Tensor = 0,
    noise: Noise | None = None,
    class_labels: Tensor | None = None,
    uncond_labels: Tensor | None = None,
    guidance_scale: float = 1.0,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    progress: Progress = False,
    callback: Callable[[SampleStep], object] | None = None,
) -> Tensor:
    """Draw samples from a diffusion model.

    Args:
        model: called as model(x_t, t), t [N] int64 on x_t's device; with the keyword class_labels
            where they are given. Returns [N, C, ...], or [N, 2C, ...] with a learned variance.
        shape: (N, C, ...) of the result.
        schedule: the one the model was trained on.
        sampler: "ddpm" (Ho et al. 2020), "ddim" (Song et al. 2021), "dpm++" (Lu et al. 2022, 2M).
        steps: None for all timesteps; how many; section counts ("ddim50", "10,15,20"); or the
            timesteps themselves, decreasing. See fastdiff.schedules.timesteps.
        spacing: "leading", "trailing", "linspace" or "quadratic", for a number of steps. None is
            "leading", and "trailing" for dpm++, whose two-step term wants even steps to the end.
        eta: DDIM's share of ancestral noise, 0..1.
        prediction_type: "epsilon", "x_start", "v" or "posterior_mean".
        variance_type: "fixed_small", "fixed_large", "learned" or "learned_range", for ddpm. The
            other samplers make nothing of a learned variance.
        clip: x_0 to [-1, 1] (True), to a bound, by DynamicThresholding, or not (False).
        rederive_eps: DDIM takes epsilon anew from the clipped x_0, as guided-diffusion does; False
            keeps the model's own, as diffusers does.
        start: a visited timestep to begin at, with noise the x_t [N, C, ...] there; None begins at
            the noisiest one.
        seed: 0..2**64-1. Image i is driven by the noise of (seed, sample_index[i]) alone, whatever
            the batch: draw 0 is x_T, draw k + 1 the noise of the k-th step of the run.
        sample_index: of the first image, or [N] int64.
        noise: x_T [N, C, ...], or noise(draw, sample_index) -> [N, C, ...] for every draw; None
            makes it from seed.
        class_labels: [N] int64.
        uncond_labels: [N] int64, the labels that the model was trained to take for no class.
        guidance_scale: 1 samples by class_labels alone; above it they count for more (Ho and
            Salimans 2022, eq. 6, w + 1), and the model is called on both halves at once, [2N].
        device: default the model's parameters', else that of a noise tensor, else the CPU.
        dtype: what the model is called with, default its parameters' (else float32). The state x_t
            is float32, or float64 if dtype is.
        progress: show a bar; or show(done, total), called after each step.
        callback: called after each step.

    Returns:
        x_0 [N, C, ...], float32 (or float64), in the model's range: [-1, 1] for images.

    Raises:
        ValueError: an unknown option, steps above T, or a shape or number that does not fit.
        TypeError: a model that returns something other than a tensor.
    """
    run = _run(
        model,
        shape,
        schedule=schedule,
        sampler=sampler,
        steps=steps,
        spacing=spacing,
        eta=eta,
        prediction_type=prediction_type,
        variance_type=variance_type,
        clip=clip,
        rederive_eps=rederive_eps,
        start=start,
        seed=seed,
        sample_index=sample_index,
        noise=noise,
        class_labels=class_labels,
        uncond_labels=uncond_labels,
        guidance_scale=guidance_scale,
        device=device,
        dtype=dtype,
    )
    return run.result(progress=progress, callback=callback)


def sample_progressive(
    model: Model,
    shape: Sequence[int],
    *,
    schedule: NoiseSchedule,
    sampler: str = "ddpm",
    steps: Steps = None,
    spacing: str | None = None,
    eta: float = 0.0,
    prediction_type: str = "epsilon",
    variance_type: str = "fixed_small",
    clip: Clip = True,
    rederive_eps: bool = True,
    start: int | None = None,
    seed: int = 0,
    sample_index: int | Tensor = 0,
    noise: Noise | None = None,
    class_labels: Tensor | None = None,
    uncond_labels: Tensor | None = None,
    guidance_scale: float = 1.0,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Iterator[SampleStep]:
    """As sample, step by step: yields a SampleStep after each. Bad arguments raise at the call."""
    run = _run(
        model,
        shape,
        schedule=schedule,
        sampler=sampler,
        steps=steps,
        spacing=spacing,
        eta=eta,
        prediction_type=prediction_type,
        variance_type=variance_type,
        clip=clip,
        rederive_eps=rederive_eps,
        start=start,
        seed=seed,
        sample_index=sample_index,
        noise=noise,
        class_labels=class_labels,
        uncond_labels=uncond_labels,
        guidance_scale=guidance_scale,
        device=device,
        dtype=dtype,
    )
    return run.history()


def ddim_invert(
    model: Model,
    x_start: Tensor,
    *,
    schedule: NoiseSchedule,
    steps: Steps = None,
    spacing: str | None = None,
    prediction_type: str = "epsilon",
    class_labels: Tensor | None = None,
    dtype: torch.dtype | None = None,
    progress: Progress = False,
    callback: Callable[[SampleStep], object] | None = None,
) -> Tensor:
    """The latent that DDIM (eta = 0, unclipped, the same steps) leads back to x_start, nearly.

    Song et al. 2021, section 4.3: the ODE run upwards. In each SampleStep t is the level reached,
    and x_prev the state there.

    Args:
        x_start: [N, C, ...] in [-1, 1], on the model's device.

    Returns:
        x_t [N, C, ...] at the noisiest visited timestep, float32 (or float64 if dtype is).

    The other arguments and what is raised are as for sample.
    """
    visited = visited_timesteps(schedule, steps, spacing or DEFAULT_SPACING["ddim"])
    columns = ddim_inverse_columns(schedule, visited, prediction_type)
    plan = Plan.of(visited[::-1].copy(), {name: column[::-1] for name, column in columns.items()})
    run = Run(
        model,
        x_start.shape,
        plan,
        clip=False,
        noise=x_start,
        class_labels=class_labels,
        device=x_start.device,
        dtype=dtype,
    )
    return run.result(progress=progress, callback=callback)


def make_plan(
    schedule: NoiseSchedule,
    visited: NDArray[np.int64],
    sampler: str,
    prediction_type: str = "epsilon",
    variance_type: str = "fixed_small",
    *,
    eta: float = 0.0,
    rederive_eps: bool = True,
) -> Plan:
    """A sampler's timesteps and table; ValueError for an unknown or ill-fitting option."""
    check_variance_type(variance_type)
    if sampler != "ddim" and eta:
        raise ValueError(f"eta belongs to sampler 'ddim'; {sampler!r} takes none, got {eta}.")
    if _known(sampler) == "ddpm":
        columns = ddpm_columns(schedule, visited, prediction_type, variance_type=variance_type)
    elif sampler == "ddim":
        columns = ddim_columns(
            schedule, visited, prediction_type, eta=eta, rederive_eps=rederive_eps
        )
    else:
        columns = dpm_solver_columns(schedule, visited, prediction_type)
    return Plan.of(visited, columns)


def _run(
    model: Model,
    shape: Sequence[int],
    *,
    schedule: NoiseSchedule,
    sampler: str,
    steps: Steps,
    spacing: str | None,
    eta: float,
    prediction_type: str,
    variance_type: str,
    rederive_eps: bool,
    start: int | None,
    noise: Noise | None,
    **walk: Any,
) -> Run:
    visited = visited_timesteps(schedule, steps, spacing or DEFAULT_SPACING[_known(sampler)])
    plan = make_plan(
        schedule,
        _from_start(visited, start, noise),
        sampler,
        prediction_type,
        variance_type,
        eta=eta,
        rederive_eps=rederive_eps,
    )
    learned = sampler == "ddpm" and check_variance_type(variance_type)
    return Run(model, shape, plan, learned=learned, noise=noise, **walk)


def _known(sampler: str) -> str:
    if sampler not in SAMPLERS:
        raise ValueError(f"unknown sampler {sampler!r}: choose one of {', '.join(SAMPLERS)}.")
    return sampler


def _from_start(visited: NDArray[np.int64], start: int | None, noise: object) -> NDArray[np.int64]:
    if start is None:
        return visited
    if not isinstance(noise, Tensor):
        raise ValueError(f"start={start} begins at a given x_t: hand that in as noise.")
    if start not in visited:
        nearest = visited[np.abs(visited - start).argmin()]
        raise ValueError(f"start={start} is no timestep of these steps; the nearest is {nearest}.")
    return visited[visited <= start]
