"""What training minimises: L_simple, L_vlb and L_hybrid, by sample."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastdiff import ops
from fastdiff.diffusion import (
    check_prediction_type,
    check_variance_type,
    conversion,
    noising_table,
    p_mean_variance,
)
from fastdiff.losses.bound import bound_term
from fastdiff.schedules import NoiseSchedule, Table

OBJECTIVES = ("simple", "hybrid", "vlb")
WEIGHTINGS = ("uniform", "min_snr")


class TrainingLosses(NamedTuple):
    """Of each sample, [N] float32 (float64 for float64 images).

    loss: what is trained on.
    simple: the mean squared error of the prediction, unweighted.
    vlb: the term of the variational bound at t in bits a dimension; None for objective "simple".
    """

    loss: Tensor
    simple: Tensor
    vlb: Tensor | None


def training_losses(
    model: Callable[..., Tensor],
    x_start: Tensor,
    t: Tensor,
    noise: Tensor | None = None,
    *,
    schedule: NoiseSchedule,
    prediction_type: str = "epsilon",
    variance_type: str = "fixed_small",
    objective: str = "simple",
    rescaled: bool = False,
    weighting: str = "uniform",
    min_snr_gamma: float = 5.0,
    vlb_weight: float = 0.001,
    class_labels: Tensor | None = None,
    seed: int | Tensor = 0,
    sample_index: Tensor | None = None,
    draw: int | Tensor = 0,
    stream: int = 0,
) -> TrainingLosses:
    """The losses of one batch, each sample at its own timestep.

    - "simple": L_simple (Ho et al. 2020, eq. 14), for whatever the model predicts. A learned
      variance gets no gradient from it.
    - "vlb": the bound's term at t (Ho et al. 2020, eq. 5), an estimate of L_vlb / T with even
      timesteps; `rescaled`, T times that, an estimate of L_vlb.
    - "hybrid": L_simple + vlb_weight * L_vlb, L_vlb estimated by T times its term, whose gradient
      stops at the mean and so trains the variance alone (Nichol and Dhariwal 2021, eq. 16;
      guided-diffusion's RESCALED_MSE).

    Args:
        model: called as ``model(x_t, t)``, or ``model(x_t, t, class_labels=...)``. Returns
            ``[N, C, ...]``, or ``[N, 2C, ...]`` with a learned variance, in any floating dtype;
            losses are taken in float32 (float64 for float64 images).
        x_start: clean images, ``[N, C, ...]`` in [-1, 1]; for the bound of 256 levels there.
        t: timesteps, ``[N]`` int64 in [0, T-1].
        noise: standard normal, like ``x_start``; None draws it as x_t is made, the normals of
            ``ops.philox_normal`` for seed, sample_index, draw and stream.
        prediction_type: "epsilon", "x_start", "v" or "posterior_mean".
        variance_type: "fixed_small", "fixed_large", "learned" or "learned_range".
        objective: as above.
        rescaled: for objective "vlb".
        weighting: of L_simple by t: "uniform", or "min_snr" for Hang et al. 2023, min(SNR, gamma)
            times the error of x_0, whatever is predicted.
        min_snr_gamma: gamma, above 0.
        vlb_weight: for objective "hybrid".
        class_labels: ``[N]`` int64, or None.
        seed, sample_index, draw, stream: as for ``ops.philox_normal``.

    Raises:
        ValueError: an unknown option or options that do not fit together, a wrong shape or
            timestep, noise and sample_index both None, or an output of another shape.
    """
    learned = _check_options(variance_type, objective, rescaled, weighting, min_snr_gamma)
    x_t, _, target = ops.q_sample(
        x_start,
        t,
        noising_table(schedule, x_start.device, prediction_type),
        noise=noise,
        seed=seed,
        sample_index=sample_index,
        draw=draw,
        stream=stream,
        return_target=True,
    )
    assert target is not None
    output = _called(model, x_t, t, class_labels, learned)
    mean, variance = output[:, : x_t.shape[1]], output[:, x_t.shape[1] :]
    simple = (mean - target.to(mean.dtype)).square().flatten(1).mean(1)
    weighed = simple
    if weighting == "min_snr":
        weights = torch.from_numpy(min_snr_weights(schedule, prediction_type, min_snr_gamma))
        weighed = simple * weights.to(t.device)[t].to(simple.dtype)
    if objective == "simple":
        return TrainingLosses(weighed, simple, None)
    if objective == "hybrid":
        output = torch.cat([mean.detach(), variance], 1)
    p = p_mean_variance(
        schedule,
        output,
        x_t.to(output.dtype),
        t,
        prediction_type=prediction_type,
        variance_type=variance_type,
        clip=False,
    )
    vlb = bound_term(schedule, x_start.to(output.dtype), x_t.to(output.dtype), t, p)
    T = schedule.num_timesteps
    if objective == "hybrid":
        return TrainingLosses(weighed + vlb_weight * T * vlb, simple, vlb)
    return TrainingLosses(vlb * T if rescaled else vlb, simple, vlb)


def simple_loss(
    model: Callable[..., Tensor],
    x_start: Tensor,
    t: Tensor,
    noise: Tensor | None = None,
    *,
    schedule: NoiseSchedule,
    prediction_type: str = "epsilon",
    class_labels: Tensor | None = None,
    seed: int | Tensor = 0,
    sample_index: Tensor | None = None,
    draw: int | Tensor = 0,
    stream: int = 0,
) -> Tensor:
    """L_simple of each sample, [N]: `training_losses` with objective "simple", its `loss` alone."""
    return training_losses(
        model,
        x_start,
        t,
        noise,
        schedule=schedule,
        prediction_type=prediction_type,
        class_labels=class_labels,
        seed=seed,
        sample_index=sample_index,
        draw=draw,
        stream=stream,
    ).loss


@lru_cache(maxsize=16)
def min_snr_weights(schedule: NoiseSchedule, prediction_type: str, gamma: float = 5.0) -> Table:
    """The weight [T] of the squared error of a prediction that makes it min(SNR, gamma) times the
    squared error of x_0 (Hang et al. 2023, section 3.4).

    min(SNR, gamma) / SNR for epsilon, min(SNR, gamma) for x_start, min(SNR, gamma) / (SNR + 1) for
    v. Where there is no signal, and x_0's error is infinite in epsilon's, the limit 1.
    """
    check_prediction_type(prediction_type)
    snr = schedule.alphas_cumprod / (1 - schedule.alphas_cumprod)
    _, of_output = conversion(schedule, prediction_type, "x_start")
    with np.errstate(invalid="ignore"):
        weights = np.minimum(snr, gamma) * of_output**2
    return np.where(np.isfinite(weights), weights, 1.0)


def _called(
    model: Callable[..., Tensor], x_t: Tensor, t: Tensor, labels: Tensor | None, learned: bool
) -> Tensor:
    """The model's output in the dtype of the losses."""
    output = model(x_t, t) if labels is None else model(x_t, t, class_labels=labels)
    N, C, *rest = x_t.shape
    wanted = [N, 2 * C if learned else C, *rest]
    if list(output.shape) != wanted:
        raise ValueError(
            f"the model returned {list(output.shape)}; expected {wanted}, "
            f"{'twice the channels for' if learned else 'for variances that are not'} learned."
        )
    return output.to(torch.promote_types(x_t.dtype, torch.float32))


def _check_options(
    variance_type: str, objective: str, rescaled: bool, weighting: str, gamma: float
) -> bool:
    """Whether the variance is learned."""
    learned = check_variance_type(variance_type)
    for name, value, known in (
        ("objective", objective, OBJECTIVES),
        ("weighting", weighting, WEIGHTINGS),
    ):
        if value not in known:
            raise ValueError(f"unknown {name} {value!r}: choose one of {', '.join(known)}.")
    if objective == "hybrid" and not learned:
        raise ValueError(
            f"objective 'hybrid' trains a learned variance, and variance_type is "
            f"{variance_type!r}: take 'learned_range' or 'learned', or objective 'simple' or 'vlb'."
        )
    if rescaled and objective != "vlb":
        raise ValueError(f"rescaled belongs to objective 'vlb'; {objective!r} takes it not.")
    if weighting != "uniform" and objective == "vlb":
        raise ValueError(f"weighting {weighting!r} is of L_simple, which 'vlb' does not train on.")
    if not gamma > 0:
        raise ValueError(f"min_snr_gamma must be above 0, got {gamma}.")
    return learned
