"""A noise schedule that is trained: a monotone network of the log-SNR.

Kingma et al. 2021, "Variational diffusion models", section 3.2 and appendix H.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastdiff import ops
from fastdiff.losses import (
    TrainingLosses,
    bits_per_dimension,
    discretized_gaussian_log_likelihood,
    normal_kl,
)
from fastdiff.schedules import NoiseSchedule


class LearnedSchedule(nn.Module):
    """log-SNR at timesteps 0..T-1, strictly decreasing, as a network's output.

    A line plus a sum of rising sigmoids, scaled to lie between two ends that are trained as well.

    Args:
        num_timesteps: T, from 2 up.
        log_snr: at the first and at the last timestep, to begin with; the default is about that of
            the linear schedule.
        width: how many sigmoids.

    Raises ValueError for a T or ends that do not fit.
    """

    def __init__(
        self,
        num_timesteps: int,
        log_snr: tuple[float, float] = (9.2, -10.1),
        width: int = 256,
    ) -> None:
        super().__init__()
        if num_timesteps < 2 or not log_snr[0] > log_snr[1]:
            raise ValueError(
                f"a learned schedule needs two timesteps or more and a log_snr that falls, got "
                f"{num_timesteps} and {log_snr}."
            )
        self.num_timesteps = num_timesteps
        self.last = nn.Parameter(torch.tensor(float(log_snr[1])))
        # The logarithm of the fall, so that the ends cannot cross.
        self.log_fall = nn.Parameter(torch.tensor(log_snr[0] - log_snr[1]).log())
        self.slopes = nn.Parameter(torch.full((width,), 3.0) + torch.randn(width))
        self.offsets = nn.Parameter(torch.linspace(-3, 3, width))
        self.heights = nn.Parameter(torch.full((width,), -4.0) - torch.tensor(width).log())

    def forward(self, t: Tensor) -> Tensor:
        """The log-SNR [N] at timesteps t [N], whole or not, in the parameters' dtype."""
        u = t.to(self.last.dtype) / (self.num_timesteps - 1)
        ends = torch.tensor([0.0, 1.0], dtype=u.dtype, device=u.device)
        risen = self._risen(torch.cat([ends, u]))
        share = (risen[2:] - risen[0]) / (risen[1] - risen[0])
        return self.last + self.log_fall.exp() * (1 - share)

    def losses(
        self,
        model: Callable[..., Tensor],
        x_start: Tensor,
        t: Tensor,
        *,
        class_labels: Tensor | None = None,
        seed: int | Tensor = 0,
        sample_index: Tensor,
        draw: int | Tensor = 0,
        stream: int = 0,
    ) -> TrainingLosses:
        """The variational bound of an epsilon model with a fixed_small variance, whose gradient
        reaches the schedule too.

        vlb is the term at t as `losses.training_losses` has it for the exported schedule, loss that
        term and the prior's share of one timestep: T times their mean over even t is the bound.
        Arguments are as there; x_start of 256 levels in [-1, 1].
        """
        noise = ops.philox_normal(
            x_start.shape, seed, sample_index=sample_index, draw=draw, stream=stream
        ).to(x_start)
        shape = (-1, *[1] * (x_start.ndim - 1))
        log_snr = self(t).to(x_start.dtype)
        alpha, sigma = (F.logsigmoid(a).mul(0.5).exp().view(shape) for a in (log_snr, -log_snr))
        x_t = alpha * x_start + sigma * noise
        given: dict[str, Any] = {} if class_labels is None else {"class_labels": class_labels}
        epsilon = model(x_t, t, **given).to(x_start.dtype)
        if epsilon.shape != x_t.shape:
            raise ValueError(
                f"the model returned {list(epsilon.shape)}; a learned schedule takes a model of "
                f"epsilon, {list(x_t.shape)}."
            )
        square = (epsilon - noise).square()
        rise = self(t - 1).to(x_start.dtype) - log_snr  # of the log-SNR, by the step down
        kl = 0.5 * torch.expm1(rise) * bits_per_dimension(square)
        guess = (x_t - sigma * epsilon) / alpha
        scale = 0.5 * self._first_log_variance().to(x_start.dtype)
        nll = -discretized_gaussian_log_likelihood(x_start, guess, scale)
        vlb = torch.where(t == 0, bits_per_dimension(nll), kl)
        loss = vlb + self._prior(x_start) / self.num_timesteps
        return TrainingLosses(loss, square.flatten(1).mean(1), vlb)

    @torch.no_grad()
    def export(self) -> NoiseSchedule:
        """The schedule as it is now, in float64."""
        exact = copy.deepcopy(self).double().cpu()
        return NoiseSchedule.from_log_snr(exact(torch.arange(self.num_timesteps)).numpy())

    def _risen(self, u: Tensor) -> Tensor:
        """Rising in u [N] in [0, 1], by weights that are above 0."""
        waves = torch.sigmoid(F.softplus(self.slopes) * (6 * u[:, None] - 3) + self.offsets)
        return u + (self.heights.exp() * waves).sum(1)

    def _prior(self, x_start: Tensor) -> Tensor:
        log_snr = self(torch.full((1,), self.num_timesteps - 1, device=x_start.device))
        log_snr = log_snr.to(x_start.dtype)
        mean = F.logsigmoid(log_snr).mul(0.5).exp() * x_start
        return bits_per_dimension(normal_kl(mean, F.logsigmoid(-log_snr), 0.0, 0.0))

    def _first_log_variance(self) -> Tensor:
        """Of the decoder: the posterior's at t = 1, as fixed_small has it."""
        first, second = self(torch.tensor([0, 1], device=self.last.device))
        beta = -torch.expm1(F.logsigmoid(second) - F.logsigmoid(first))
        return beta.log() + F.logsigmoid(-first) - F.logsigmoid(-second)
