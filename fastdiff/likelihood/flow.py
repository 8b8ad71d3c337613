"""The likelihood of the probability flow: the ODE that DDIM follows, read as a change of variables.

With angles phi, alpha = cos(phi) and sigma = sin(phi), the flow of Song et al. 2021, eq. 13, is
dx / dphi = v(x, phi), the prediction of Salimans and Ho 2022. It is solved over log tan(phi), half
the negative log-SNR, by Heun's rule from one timestep of the schedule to the next, so that the
model is never asked for what lies between two.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdiff import ops
from fastdiff.diffusion import Clip, convert, noising_table, p_mean_variance
from fastdiff.likelihood.images import (
    FLOW_STREAM,
    PROBE_STREAM,
    checked,
    in_range,
)
from fastdiff.losses import bound_term
from fastdiff.samplers.step import device_and_dtype
from fastdiff.schedules import NoiseSchedule

Array = NDArray[np.float64]
Model = Callable[..., Tensor]


@dataclass(frozen=True)
class FlowBitsPerDim:
    """Bits a dimension of N images by the probability flow and the decoder, [N] each.

    total: latent + decoder, which bounds the flow's discrete negative log likelihood from above.
    latent: log q(x_t | x_0) - log p(x_t) at t = 0, the density p by the flow.
    decoder: L_0 of the variational bound at the same x_t.
    standard_error: of total, for the probes of the divergence; nan with one probe.
    num_evaluations: calls of the model, each with num_probes gradients.
    """

    total: Array
    latent: Array
    decoder: Array
    standard_error: Array
    num_evaluations: int


def ode_bits_per_dim(
    model: Model,
    images: Tensor,
    *,
    schedule: NoiseSchedule,
    prediction_type: str = "epsilon",
    variance_type: str = "fixed_small",
    clip: Clip = True,
    class_labels: Tensor | None = None,
    steps: int | None = None,
    num_probes: int = 1,
    seed: int = 0,
    sample_index: int | Tensor = 0,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> FlowBitsPerDim:
    """A second figure of the likelihood, by other means than the bound's terms above t = 0.

    An image is sent in two parts: x_t at t = 0, a draw of q(x_t | x_0), by the density of the flow;
    then x_0 by the decoder of the reverse process (Ho et al. 2020, eq. 13). No dequantisation is
    needed, and the sum can be compared with `bits_per_dim`.

    Args:
        model: as for `bits_per_dim`; PyTorch must be able to differentiate it by x_t.
        images: [N, C, ...] uint8, one batch.
        schedule, prediction_type, variance_type, class_labels: as for `bits_per_dim`.
        clip: of x_0 in the decoder's mean; the flow is that of the unclipped prediction.
        steps, num_probes: as for `flow_log_density`.
        seed, sample_index: of the noise, and of the probes.
        device, dtype: as for `bits_per_dim`.

    Raises:
        TypeError: images that are not uint8.
        ValueError: an unknown option, or a shape or number that does not fit.
    """
    index = checked(images, class_labels, sample_index)
    device, dtype = device_and_dtype(model, device, dtype)
    wide = torch.promote_types(dtype, torch.float32)
    index = index.to(device)
    labels = None if class_labels is None else class_labels.to(device)
    x_start = in_range(images, device, wide)
    t = torch.zeros(len(images), dtype=torch.int64, device=device)
    x_t, noise, _ = ops.q_sample(
        x_start, t, noising_table(schedule, device, prediction_type), seed=seed,
        sample_index=index, stream=FLOW_STREAM, return_noise=True,
    )  # fmt: skip
    assert noise is not None
    density = flow_log_density(
        model, x_t, schedule=schedule, prediction_type=prediction_type, class_labels=labels,
        steps=steps, num_probes=num_probes, seed=seed, sample_index=index, dtype=dtype,
    )  # fmt: skip
    dims = x_start[0].numel() if len(x_start) else 1
    sigma = math.sqrt(1 - schedule.alphas_cumprod[0])
    of_q = _normal_log_density(noise) - dims * math.log(sigma)
    with torch.no_grad():
        output = _called(model, x_t, t, labels, dtype)
        p = p_mean_variance(
            schedule, output, x_t, t,
            prediction_type=prediction_type, variance_type=variance_type, clip=clip,
        )  # fmt: skip
        decoder = bound_term(schedule, x_start, x_t, t, p).double().cpu().numpy()
    nats = of_q.double().cpu().numpy()[:, None] - density.log_density
    latent = nats / (dims * math.log(2))
    spread = np.full(len(latent), np.nan)
    if num_probes > 1:
        spread = latent.std(1, ddof=1) / math.sqrt(num_probes)
    mean = latent.mean(1)
    return FlowBitsPerDim(mean + decoder, mean, decoder, spread, density.num_evaluations + 1)


@dataclass(frozen=True)
class FlowDensity:
    """log_density: [N, num_probes] in nats, each an unbiased estimate; num_evaluations: calls."""

    log_density: Array
    num_evaluations: int


def flow_log_density(
    model: Model,
    x_t: Tensor,
    *,
    schedule: NoiseSchedule,
    prediction_type: str = "epsilon",
    class_labels: Tensor | None = None,
    steps: int | None = None,
    num_probes: int | None = 1,
    seed: int = 0,
    sample_index: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> FlowDensity:
    """The log density of x_t at t = 0 under the probability flow (Song et al. 2021, section 4.3).

    Args:
        x_t: [N, C, ...], float32 or float64.
        steps: None goes through all T timesteps; a number, through so many of them at most, evenly
            spaced in log-SNR as far as the schedule has them so. The error falls with its square.
        num_probes: random signs for Hutchinson's estimate of the divergence; None for the exact
            one, with a gradient for each dimension.
        sample_index: [N] int64, keys the probes; None is 0..N-1.

    Raises ValueError for a shape or number that does not fit.
    """
    levels = _levels(schedule, steps)
    index = torch.arange(len(x_t)) if sample_index is None else sample_index
    dtype = dtype or x_t.dtype
    if num_probes is None:
        probes = _every_direction(x_t)
    else:
        probes = _signs(x_t, num_probes, seed, index.to(x_t.device))
    exact = num_probes is None
    flow = _Flow(model, schedule, prediction_type, class_labels, dtype, probes, exact)
    x, log_density = x_t, x_t.new_zeros(len(x_t), num_probes or 1, dtype=torch.float64)
    slope, divergence = flow(x, int(levels[0]))
    for level, above in pairwise(levels):
        h = _log_tan(schedule, above) - _log_tan(schedule, level)
        ahead, divergence_ahead = flow(x + h * slope, int(above))
        x = x + h / 2 * (slope + ahead)
        log_density += h / 2 * (divergence + divergence_ahead)
        slope, divergence = flow(x, int(above))
    log_density += _normal_log_density(x).double()[:, None]
    return FlowDensity(log_density.cpu().numpy(), flow.calls)


class _Flow:
    """dx / d log tan(phi) at a timestep, and its divergence [N, probes]."""

    def __init__(
        self,
        model: Model,
        schedule: NoiseSchedule,
        prediction_type: str,
        labels: Tensor | None,
        dtype: torch.dtype,
        probes: Tensor,
        exact: bool,
    ) -> None:
        self.model, self.schedule, self.prediction_type = model, schedule, prediction_type
        self.labels, self.dtype, self.probes, self.exact = labels, dtype, probes, exact
        self.calls = 0

    def __call__(self, x: Tensor, level: int) -> tuple[Tensor, Tensor]:
        self.calls += 1
        t = torch.full((len(x),), level, device=x.device)
        a = float(self.schedule.alphas_cumprod[level])
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            output = _called(self.model, x, t, self.labels, self.dtype)[:, : x.shape[1]]
            v = convert(self.schedule, output, x, t, source=self.prediction_type, target="v")
            slope = math.sqrt(a * (1 - a)) * v  # dphi / d log tan(phi) = sin(phi) cos(phi)
            parts = [
                (torch.autograd.grad(slope, x, probe, retain_graph=True)[0] * probe)
                .double().flatten(1).sum(1)
                for probe in self.probes
            ]  # fmt: skip
        found = torch.stack(parts, 1)
        return slope.detach(), found.sum(1, keepdim=True) if self.exact else found


def _signs(x: Tensor, count: int, seed: int, index: Tensor) -> Tensor:
    """Rademacher vectors [count, N, C, ...]."""
    if count < 1:
        raise ValueError(f"num_probes must be at least 1, or None for all, got {count}.")
    normals = [
        ops.philox_normal(
            [*x.shape], seed, sample_index=index, draw=draw, stream=PROBE_STREAM, dtype=x.dtype
        )
        for draw in range(count)
    ]
    return torch.stack(normals).ge(0).to(x.dtype) * 2 - 1


def _every_direction(x: Tensor) -> Tensor:
    """The unit vectors [D, N, C, ...] of a sample's D dimensions."""
    dims = x.shape[1:].numel()
    units = torch.eye(dims, dtype=x.dtype, device=x.device)
    return units.view(dims, 1, *x.shape[1:]).expand(-1, len(x), *x.shape[1:])


def _called(
    model: Model, x: Tensor, t: Tensor, labels: Tensor | None, dtype: torch.dtype
) -> Tensor:
    given: dict[str, Any] = {} if labels is None else {"class_labels": labels}
    return model(x.to(dtype), t, **given).to(x.dtype)


def _levels(schedule: NoiseSchedule, steps: int | None) -> NDArray[np.int64]:
    T = schedule.num_timesteps
    if schedule.alphas_cumprod[-1] == 0:
        raise ValueError("the schedule ends without a signal: its flow has no last log-SNR.")
    if steps is None:
        return np.arange(T)
    if not 1 <= steps < T:
        raise ValueError(f"steps must be None for all {T - 1}, or in 1..{T - 1}, got {steps}.")
    depths = np.array([_log_tan(schedule, level) for level in range(T)])
    wanted = np.linspace(depths[0], depths[-1], steps + 1)
    nearest = np.abs(depths[None] - wanted[:, None]).argmin(1)
    return np.unique(nearest)


def _log_tan(schedule: NoiseSchedule, level: int | np.int64) -> float:
    a = float(schedule.alphas_cumprod[level])
    return 0.5 * math.log((1 - a) / a)


def _normal_log_density(x: Tensor) -> Tensor:
    """Of N(0, 1) in every dimension, [N] in nats."""
    return -0.5 * (x.double().square() + math.log(2 * math.pi)).flatten(1).sum(1)
