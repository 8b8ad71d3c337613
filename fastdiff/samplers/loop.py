"""The one sampling loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdiff.diffusion import Clip, DynamicThresholding, check_variance_type, clip_bound
from fastdiff.ops.denoise_step import denoise_step, predict_x_start
from fastdiff.ops.philox_normal import philox_normal
from fastdiff.samplers.ddim import ddim_columns, ddim_inverse_columns
from fastdiff.samplers.ddpm import ddpm_columns
from fastdiff.samplers.dpm_solver import dpm_solver_columns
from fastdiff.samplers.plan import Plan, visited_timesteps
from fastdiff.samplers.progress import progress_bar
from fastdiff.schedules import NoiseSchedule

DEFAULT_SPACING = {"ddpm": "leading", "ddim": "leading", "dpm++": "trailing"}
SAMPLERS = tuple(DEFAULT_SPACING)

Model = Callable[..., Tensor]
Steps = int | str | Sequence[int] | None
Noise = Tensor | Callable[[int, Tensor], Tensor]


@dataclass(frozen=True)
class SampleStep:
    """One step: the model saw x_t at t, took x_0 to be pred_x_start, and the step led to x_prev.

    Tensors are [N, C, ...]; step counts from 0 to num_steps - 1.
    """

    step: int
    num_steps: int
    t: int
    x_t: Tensor
    pred_x_start: Tensor
    x_prev: Tensor


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
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    progress: bool = False,
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
        device: default the model's parameters', else that of a noise tensor, else the CPU.
        dtype: what the model is called with, default its parameters' (else float32). The state x_t
            is float32, or float64 if dtype is.
        progress: show a bar.
        callback: called after each step.

    Returns:
        x_0 [N, C, ...], float32 (or float64), in the model's range: [-1, 1] for images.

    Raises:
        ValueError: an unknown option, steps above T, or a shape or number that does not fit.
        TypeError: a model that returns something other than a tensor.
    """
    history = sample_progressive(
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
        device=device,
        dtype=dtype,
    )
    return finish(history, progress=progress, callback=callback)


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
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Iterator[SampleStep]:
    """As sample, step by step: yields a SampleStep after each. Bad arguments raise at the call."""
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
    return run(
        model,
        shape,
        plan,
        clip=clip,
        learned=learned,
        seed=seed,
        sample_index=sample_index,
        noise=noise,
        class_labels=class_labels,
        device=device,
        dtype=dtype,
    )


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
    progress: bool = False,
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
    history = run(
        model,
        x_start.shape,
        plan,
        clip=False,
        noise=x_start,
        class_labels=class_labels,
        device=x_start.device,
        dtype=dtype,
    )
    return finish(history, progress=progress, callback=callback)


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


def finish(
    history: Iterator[SampleStep],
    *,
    progress: bool = False,
    callback: Callable[[SampleStep], object] | None = None,
) -> Tensor:
    """Run a history to its end and give the last x_prev."""
    with progress_bar() if progress else nullcontext() as show:
        for done in history:
            if show:
                show(done.step + 1, done.num_steps)
            if callback:
                callback(done)
    return done.x_prev


def run(
    model: Model,
    shape: Sequence[int],
    plan: Plan,
    *,
    clip: Clip,
    learned: bool = False,
    seed: int = 0,
    sample_index: int | Tensor = 0,
    noise: Noise | None = None,
    class_labels: Tensor | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Iterator[SampleStep]:
    """Walk a plan from x_T to its end; arguments as for sample, checked at the call.

    learned tells that the plan needs the second half of a model output [N, 2C, ...].
    """
    size = _checked_shape(shape)
    parameter = next(_float_parameters(model), None)
    if device is None and parameter is not None:
        device = parameter.device
    if device is None:
        device = noise.device if isinstance(noise, Tensor) else "cpu"
    if dtype is None:
        dtype = torch.float32 if parameter is None else parameter.dtype
    if isinstance(sample_index, int):
        sample_index = torch.arange(sample_index, sample_index + size[0])
    index = sample_index.to(device)
    conditions = {}
    if class_labels is not None:
        conditions["class_labels"] = _checked(class_labels, size[:1], "class_labels").to(device)

    def predict(x_t: Tensor, t: Tensor) -> Tensor:
        return _checked_output(model(x_t.to(dtype), t, **conditions), size, learned)

    def drawn(draw: int) -> Tensor | None:
        return _checked(noise(draw, index), size, "noise(draw)") if callable(noise) else None

    x = _checked(noise, size, "noise") if isinstance(noise, Tensor) else drawn(0)
    if x is None:
        x = philox_normal(size, seed, sample_index=index)
    x = x.to(device, torch.promote_types(dtype, torch.float32))

    def step_noise(row: int) -> dict[str, Any]:
        if not plan.stochastic:
            return {}
        return {"noise": drawn(row + 1), "seed": seed, "sample_index": index}

    return _walk(predict, x, plan, clip, clip_bound(clip), step_noise)


@torch.no_grad()
def _walk(
    predict: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    plan: Plan,
    clip: Clip,
    bound: float | None,
    step_noise: Callable[[int], dict[str, Any]],
) -> Iterator[SampleStep]:
    table = torch.from_numpy(plan.table).to(x.device)
    timesteps = torch.from_numpy(plan.timesteps).to(x.device)
    rows = torch.arange(len(table), device=x.device)
    before = None
    for row, t in enumerate(plan.timesteps.tolist()):
        step = rows[row].expand(len(x))
        out = predict(x, timesteps[row].expand(len(x)))
        threshold = None
        if isinstance(clip, DynamicThresholding):
            threshold = clip.bound(predict_x_start(x, out, step, table))
        x_prev, pred, _ = denoise_step(
            x,
            out,
            step,
            table,
            clip=bound,
            threshold=threshold,
            x_start_before=before,
            return_pred_x_start=True,
            **step_noise(row),
        )
        assert pred is not None
        yield SampleStep(row, len(table), t, x, pred, x_prev)
        x, before = x_prev, pred if plan.multistep else None


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


def _checked_shape(shape: Sequence[int]) -> list[int]:
    size = [int(n) for n in shape]
    if len(size) < 2 or min(size) < 0:
        raise ValueError(f"shape must be (N, C, ...) of sizes from 0 up, got {tuple(shape)}.")
    return size


def _checked(tensor: Tensor, size: list[int], name: str) -> Tensor:
    if list(tensor.shape) != size:
        raise ValueError(f"{name} must have shape {size}, got {list(tensor.shape)}.")
    return tensor


def _checked_output(out: object, size: list[int], learned: bool) -> Tensor:
    if not isinstance(out, Tensor):
        raise TypeError(
            f"the model returned {type(out).__name__}; fastdiff takes a model that returns the "
            "output tensor: wrap it in a function that does."
        )
    N, C, *rest = size
    allowed = [[N, 2 * C, *rest]] if learned else [[N, C, *rest], [N, 2 * C, *rest]]
    if list(out.shape) not in allowed:
        wanted = " or ".join(map(str, allowed))
        raise ValueError(
            f"the model returned {list(out.shape)}; expected {wanted}"
            f"{' for a learned variance' if learned else ''}."
        )
    return out


def _float_parameters(model: object) -> Iterator[Tensor]:
    parameters = getattr(model, "parameters", None)
    if callable(parameters):
        yield from (p for p in parameters() if p.is_floating_point())
