"""The Gaussian process: noising, posteriors, and what a model's output says of x_0.

Tensors are [N, ...] and t is [N] int64 in 0..T-1. Coefficients are made in float64; half-precision
tensors are computed in float32 and given back in their own dtype. A t that lives on an accelerator
is not read back: out of range there, it trips the device's own index assertion.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from . import ops
from .schedules import NoiseSchedule, Table

PREDICTION_TYPES = ("epsilon", "x_start", "v", "posterior_mean")
VARIANCE_TYPES = ("fixed_small", "fixed_large", "learned", "learned_range")
QUANTITIES = (*PREDICTION_TYPES, "score")


@dataclass(frozen=True)
class DynamicThresholding:
    """Clip x_0 at a percentile of its own magnitude and rescale (Saharia et al. 2022, Imagen).

    Args:
        percentile: of |x_0| over each sample, in (0, 1]; it gives the bound s, at least 1.
        max_value: the greatest s. x_0 is clipped to [-s, s] and divided by s.
    """

    percentile: float = 0.995
    max_value: float = float("inf")

    def __post_init__(self) -> None:
        if not 0 < self.percentile <= 1:
            raise ValueError(f"percentile must lie in (0, 1], got {self.percentile}.")
        if not self.max_value >= 1:
            raise ValueError(f"max_value must be at least 1, got {self.max_value}.")

    def bound(self, x_start: Tensor) -> Tensor:
        """s [N] for x_start [N, ...], in float32 at least; linear between ranks."""
        return magnitude_quantile(x_start, self.percentile).clamp(1.0, self.max_value)


def magnitude_quantile(x: Tensor, q: float) -> Tensor:
    """The q-quantile [N] of |x| over each sample of x [N, ...], q in [0, 1].

    In float32 at least; linear between ranks.
    """
    ascending = x.to(_compute_dtype(x)).abs().flatten(1).sort(dim=1).values
    # By ranks, since torch.quantile refuses more than 2**24 elements.
    rank = q * (ascending.shape[1] - 1)
    low, high = ascending[:, math.floor(rank)], ascending[:, math.ceil(rank)]
    return torch.lerp(low, high, rank - math.floor(rank))


Clip = bool | float | DynamicThresholding


@dataclass(frozen=True)
class Gaussian:
    """A diagonal Gaussian: mean [N, ...], variance and log_variance broadcastable to it.

    At t = 0 the posterior's variance is 0 and its log_variance that of t = 1.
    """

    mean: Tensor
    variance: Tensor
    log_variance: Tensor


@dataclass(frozen=True)
class ModelGaussian(Gaussian):
    """p(x_{t-1} | x_t), and the clipped x_0 [N, ...] that its mean rests on."""

    pred_x_start: Tensor


def q_sample(schedule: NoiseSchedule, x_start: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """Draw from q(x_t | x_0) (Ho et al. 2020, eq. 4) with the standard normal noise handed in.

    Args:
        x_start: [N, ...] in [-1, 1].
        t: [N] int64 in 0..T-1.
        noise: as x_start.

    Returns:
        x_t, as x_start.

    Raises:
        ValueError: shapes that do not match, or t out of range.
        TypeError: t that is not int64.
    """
    return ops.q_sample(x_start, t, noising_table(schedule, t.device), noise=noise).x_t


def noising_table(
    schedule: NoiseSchedule, device: torch.device, prediction_type: str = "epsilon"
) -> Tensor:
    """The table [T, 4] of ops.q_sample: x_t, and what a model of prediction_type should return."""
    signal, deviation = schedule.sqrt_alphas_cumprod, schedule.sqrt_one_minus_alphas_cumprod
    table = np.stack([signal, deviation, *_target(schedule, prediction_type)], 1)
    return _device_table(table.tobytes(), device).view(-1, 4)


def q_step(schedule: NoiseSchedule, x_prev: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """Draw from q(x_t | x_{t-1}) (Ho et al. 2020, eq. 2); arguments as in q_sample."""
    return _mix(t, (np.sqrt(schedule.alphas), x_prev), (np.sqrt(schedule.betas), noise))


def q_mean_variance(schedule: NoiseSchedule, x_start: Tensor, t: Tensor) -> Gaussian:
    """q(x_t | x_0) (Ho et al. 2020, eq. 4); arguments as in q_sample."""
    compute = x_start.to(_compute_dtype(x_start))
    mean = (_gather(schedule.sqrt_alphas_cumprod, t, compute) * compute).to(x_start.dtype)
    variance = 1 - schedule.alphas_cumprod
    return Gaussian(mean, _gather(variance, t, mean), _gather(np.log(variance), t, mean))


def q_posterior_mean_variance(
    schedule: NoiseSchedule, x_start: Tensor, x_t: Tensor, t: Tensor
) -> Gaussian:
    """q(x_{t-1} | x_t, x_0) (Ho et al. 2020, eq. 6 and 7); arguments as in q_sample."""
    mean = _mix(t, (schedule.posterior_mean_coef1, x_start), (schedule.posterior_mean_coef2, x_t))
    return Gaussian(
        mean,
        _gather(schedule.posterior_variance, t, mean),
        _gather(schedule.posterior_log_variance_clipped, t, mean),
    )


def prediction_target(
    schedule: NoiseSchedule, x_start: Tensor, noise: Tensor, t: Tensor, prediction_type: str
) -> Tensor:
    """What a model of `prediction_type` should return for x_t = q_sample(x_start, t, noise).

    Epsilon (Ho et al. 2020, eq. 14), x_0, v (Salimans and Ho 2022, appendix D) or the posterior
    mean (Ho et al. 2020, eq. 7). From x_0 and the noise themselves: going by x_t would divide by
    the vanishing signal or noise.

    Args:
        x_start, noise: [N, ...].
        t: [N] int64 in 0..T-1.

    Raises ValueError or TypeError for a wrong shape, dtype, t or prediction type.
    """
    if prediction_type in ("x_start", "epsilon"):
        return x_start if prediction_type == "x_start" else noise
    of_x_start, of_noise = _target(schedule, prediction_type)
    return _mix(t, (of_x_start, x_start), (of_noise, noise))


def convert(
    schedule: NoiseSchedule,
    model_output: Tensor,
    x_t: Tensor,
    t: Tensor,
    *,
    source: str,
    target: str,
) -> Tensor:
    """Turn one description of x_t into another: source and target are any of QUANTITIES.

    "epsilon" the noise, "x_start" the image, "v" (Salimans and Ho 2022, section 4),
    "posterior_mean" the mean of q(x_{t-1} | x_t, x_0), "score" the gradient of log q(x_t | x_0).

    Args:
        model_output: [N, ...] of kind source.
        x_t: as model_output.
        t: [N] int64 in 0..T-1.

    Raises:
        ValueError: an unknown kind, shapes that do not match, t out of range, or a level without
            signal (alphas_cumprod = 0), where epsilon and score say nothing of x_0.
    """
    of_x_t, of_output = conversion(schedule, source, target)
    _check_determined(of_x_t, t, source)
    return _mix(t, (of_x_t, x_t), (of_output, model_output))


def predict_x_start(
    schedule: NoiseSchedule,
    model_output: Tensor,
    x_t: Tensor,
    t: Tensor,
    prediction_type: str = "epsilon",
) -> Tensor:
    """x_0 as the model's output implies it (Ho et al. 2020, eq. 15), unclipped; see convert."""
    return convert(schedule, model_output, x_t, t, source=prediction_type, target="x_start")


def p_mean_variance(
    schedule: NoiseSchedule,
    model_output: Tensor,
    x_t: Tensor,
    t: Tensor,
    *,
    prediction_type: str = "epsilon",
    variance_type: str = "fixed_small",
    clip: Clip = True,
    denoised_fn: Callable[[Tensor], Tensor] | None = None,
) -> ModelGaussian:
    """p(x_{t-1} | x_t) from the model's output at (x_t, t) (Ho et al. 2020, section 3.2).

    Args:
        model_output: [N, C, ...], or [N, 2C, ...] where the variance is learned: its second half is
            then log-variance ("learned") or lies in [-1, 1] between the two bounds
            ("learned_range", Nichol and Dhariwal 2021, eq. 15).
        x_t: [N, C, ...].
        t: [N] int64 in 0..T-1.
        clip: True clips x_0 to [-1, 1], a number to that bound, False not at all.
        denoised_fn: applied to x_0 before it is clipped.

    Raises:
        ValueError: an unknown type, a shape that does not fit it, or t out of range.
    """
    channels = x_t.shape[1]
    learned = check_variance_type(variance_type)
    if model_output.shape[1] != channels * (1 + learned):
        raise ValueError(
            f"variance_type {variance_type!r} needs a model output of {channels * (1 + learned)} "
            f"channels for x_t of {channels}; got {model_output.shape[1]}."
        )
    pred = predict_x_start(schedule, model_output[:, :channels], x_t, t, prediction_type)
    pred = clip_x_start(pred if denoised_fn is None else denoised_fn(pred), clip)
    posterior = q_posterior_mean_variance(schedule, pred, x_t, t)
    if learned:
        offset, scale = learned_log_variance(schedule, variance_type)
        raw = model_output[:, channels:].to(_compute_dtype(model_output))
        log_variance = _gather(offset, t, raw) + _gather(scale, t, raw) * raw
        variance = log_variance.exp()
    else:
        variance_table, log_table = fixed_variance(schedule, variance_type)
        variance = _gather(variance_table, t, posterior.mean)
        log_variance = _gather(log_table, t, posterior.mean)
    return ModelGaussian(posterior.mean, variance, log_variance, pred)


def clip_x_start(x_start: Tensor, clip: Clip) -> Tensor:
    """x_0 [N, ...] clipped as asked: to [-1, 1] (True), to a bound, by percentile, or not."""
    if isinstance(clip, DynamicThresholding):
        divisor = clip.bound(x_start).view(-1, *[1] * (x_start.ndim - 1))
        x_start = (x_start / divisor).to(x_start.dtype)
    bound = clip_bound(clip)
    return x_start if bound is None else x_start.clamp(-bound, bound)


def clip_bound(clip: Clip) -> float | None:
    """The bound on x_0: 1 for True and, after its division, DynamicThresholding; None for False."""
    if clip is False:
        return None
    bound = 1.0 if isinstance(clip, DynamicThresholding) else float(clip)
    if not bound > 0:
        raise ValueError(
            f"clip must be True, False, a positive number or DynamicThresholding; got {clip!r}."
        )
    return bound


def check_prediction_type(prediction_type: str) -> None:
    """ValueError unless prediction_type is one of PREDICTION_TYPES."""
    if prediction_type not in PREDICTION_TYPES:
        raise ValueError(
            f"unknown prediction_type {prediction_type!r}: choose one of "
            f"{', '.join(PREDICTION_TYPES)}."
        )


def check_variance_type(variance_type: str) -> bool:
    """Whether the variance comes from the model; ValueError unless one of VARIANCE_TYPES."""
    if variance_type not in VARIANCE_TYPES:
        raise ValueError(
            f"unknown variance_type {variance_type!r}: choose one of {', '.join(VARIANCE_TYPES)}."
        )
    return variance_type.startswith("learned")


@lru_cache(maxsize=64)
def conversion(schedule: NoiseSchedule, source: str, target: str) -> tuple[Table, Table]:
    """(of_x_t, of_output), [T] each: target = of_x_t * x_t + of_output * output of kind source.

    Not finite at a level without signal, if source says nothing of x_0 there.
    """
    into_x_start, from_x_start = _KINDS[_checked_kind(source)][0], _KINDS[_checked_kind(target)][1]
    if source == target:
        return np.zeros(schedule.num_timesteps), np.ones(schedule.num_timesteps)
    with np.errstate(divide="ignore", invalid="ignore"):
        x_of_x_t, x_of_output = into_x_start(schedule)
        y_of_x_t, y_of_x = from_x_start(schedule)
        return y_of_x_t + y_of_x * x_of_x_t, y_of_x * x_of_output


def fixed_variance(schedule: NoiseSchedule, variance_type: str) -> tuple[Table, Table]:
    """(variance, log variance), [T] each, of fixed_small and fixed_large (Ho et al. 2020, 3.2)."""
    if variance_type == "fixed_small":
        return schedule.posterior_variance, schedule.posterior_log_variance_clipped
    first = np.exp(schedule.posterior_log_variance_clipped[:1])
    variance = np.append(first, schedule.betas[1:])
    return variance, np.log(variance)


def learned_log_variance(schedule: NoiseSchedule, variance_type: str) -> tuple[Table, Table]:
    """(offset, scale), [T] each: log variance = offset + scale * raw model output.

    learned_range interpolates from the clipped posterior variance at -1 to beta at 1.
    """
    if variance_type == "learned":
        return np.zeros(schedule.num_timesteps), np.ones(schedule.num_timesteps)
    low, high = schedule.posterior_log_variance_clipped, np.log(schedule.betas)
    return (high + low) / 2, (high - low) / 2


def _target(schedule: NoiseSchedule, prediction_type: str) -> _Pair:
    """(of_x_start, of_noise), [T] each: what a model of prediction_type should return."""
    check_prediction_type(prediction_type)
    if prediction_type == "epsilon":
        return _constant(schedule, 0.0, 1.0)
    if prediction_type == "x_start":
        return _constant(schedule, 1.0, 0.0)
    signal, deviation = schedule.sqrt_alphas_cumprod, schedule.sqrt_one_minus_alphas_cumprod
    if prediction_type == "v":
        return -deviation, signal
    of_x_start, of_x_t = schedule.posterior_mean_coef1, schedule.posterior_mean_coef2
    return of_x_start + of_x_t * signal, of_x_t * deviation


_Pair = tuple[Table, Table]
_Coefficients = Callable[[NoiseSchedule], _Pair]


def _constant(schedule: NoiseSchedule, x_t: float, other: float) -> _Pair:
    return np.full(schedule.num_timesteps, x_t), np.full(schedule.num_timesteps, other)


# Each kind y as a pair: (a, b) with x_start = a * x_t + b * y, and with y = a * x_t + b * x_start.
_KINDS: dict[str, tuple[_Coefficients, _Coefficients]] = {
    "x_start": (lambda s: _constant(s, 0.0, 1.0), lambda s: _constant(s, 0.0, 1.0)),
    "epsilon": (
        lambda s: (
            1 / s.sqrt_alphas_cumprod,
            -s.sqrt_one_minus_alphas_cumprod / s.sqrt_alphas_cumprod,
        ),
        lambda s: (
            1 / s.sqrt_one_minus_alphas_cumprod,
            -s.sqrt_alphas_cumprod / s.sqrt_one_minus_alphas_cumprod,
        ),
    ),
    "v": (
        lambda s: (s.sqrt_alphas_cumprod, -s.sqrt_one_minus_alphas_cumprod),
        lambda s: (
            s.sqrt_alphas_cumprod / s.sqrt_one_minus_alphas_cumprod,
            -1 / s.sqrt_one_minus_alphas_cumprod,
        ),
    ),
    "posterior_mean": (
        lambda s: (
            -s.posterior_mean_coef2 / s.posterior_mean_coef1,
            1 / s.posterior_mean_coef1,
        ),
        lambda s: (s.posterior_mean_coef2, s.posterior_mean_coef1),
    ),
    "score": (
        lambda s: (
            1 / s.sqrt_alphas_cumprod,
            (1 - s.alphas_cumprod) / s.sqrt_alphas_cumprod,
        ),
        lambda s: (
            -1 / (1 - s.alphas_cumprod),
            s.sqrt_alphas_cumprod / (1 - s.alphas_cumprod),
        ),
    ),
}


def _checked_kind(kind: str) -> str:
    if kind not in _KINDS:
        raise ValueError(f"unknown kind {kind!r}: choose one of {', '.join(QUANTITIES)}.")
    return kind


def _check_determined(of_x_t: Table, t: Tensor, source: str) -> None:
    undetermined = np.flatnonzero(~np.isfinite(of_x_t))
    if undetermined.size and torch.isin(t, torch.tensor(undetermined, device=t.device)).any():
        raise ValueError(
            f"at t = {undetermined[0]} alphas_cumprod is 0: x_t holds no signal and {source} does "
            "not determine x_start; use a model that predicts v or x_start, or leave that t out."
        )


def _mix(t: Tensor, first: tuple[Table, Tensor], second: tuple[Table, Tensor]) -> Tensor:
    """table[t] * tensor of both, added in float32 at least; in the tensors' own dtype."""
    (a, x), (b, y) = first, second
    if x.shape != y.shape:
        raise ValueError(
            f"two tensors must share one shape; they came as {list(x.shape)} and {list(y.shape)}."
        )
    dtype = torch.promote_types(x.dtype, y.dtype)
    compute = torch.promote_types(dtype, torch.float32)
    x, y = x.to(compute), y.to(compute)
    return (_gather(a, t, x) * x + _gather(b, t, y) * y).to(dtype)


def _gather(table: Table, t: Tensor, like: Tensor) -> Tensor:
    """table[t] as [N, 1, ...] on like's device, in float32 or like's wider dtype."""
    _check_t(t, len(table), like)
    values = _device_table(table.tobytes(), t.device)[t]
    return values.to(_compute_dtype(like)).view(-1, *[1] * (like.ndim - 1))


def _check_t(t: Tensor, T: int, like: Tensor) -> None:
    if t.dtype != torch.int64:
        raise TypeError(f"t must be int64, got {t.dtype}.")
    if t.shape != like.shape[:1]:
        raise ValueError(f"t must be [{like.shape[0]}], one for each sample; got {list(t.shape)}.")
    if t.device.type == "cpu" and t.numel() and not (0 <= int(t.min()) and int(t.max()) < T):
        raise ValueError(f"t must lie in 0..{T - 1}, got {int(t.min())}..{int(t.max())}.")


def _compute_dtype(like: Tensor) -> torch.dtype:
    return torch.promote_types(like.dtype, torch.float32)


@lru_cache(maxsize=256)
def _device_table(float64_bytes: bytes, device: torch.device) -> Tensor:
    # Kept between calls, so that training copies nothing to the device; hence no inference tensor.
    with torch.inference_mode(False):
        return torch.frombuffer(bytearray(float64_bytes), dtype=torch.float64).to(device)
