"""Data of a known Gaussian, and the model that is best for it, in closed form."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from fastdiff.schedules import NoiseSchedule


class GaussianModel:
    """Predicts epsilon for x_0 ~ N(mean, covariance) in D dimensions, [N, D, 1]."""

    def __init__(self, schedule: NoiseSchedule, mean: Tensor, covariance: Tensor) -> None:
        self.schedule, self.mean, self.covariance = schedule, mean, covariance

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        a = torch.tensor(self.schedule.alphas_cumprod)[t].view(-1, 1)
        centred = x_t[..., 0].double() - a.sqrt() * self.mean
        eye = torch.eye(len(self.mean), dtype=torch.float64)
        of_x_t = a[..., None] * self.covariance + (1 - a)[..., None] * eye
        score = torch.linalg.solve(of_x_t, centred[..., None])[..., 0]
        return ((1 - a).sqrt() * score)[..., None].to(x_t.dtype)

    def draw(self, count: int, seed: int = 0) -> Tensor:
        """x_0 [count, D, 1] float64."""
        generator = torch.Generator().manual_seed(seed)
        z = torch.randn(count, len(self.mean), dtype=torch.float64, generator=generator)
        return (self.mean + z @ torch.linalg.cholesky(self.covariance).T)[..., None]

    def log_density_at_first_level(self, x: Tensor) -> np.ndarray:
        """Of x_t at t = 0, [N] in nats, exact."""
        a = float(self.schedule.alphas_cumprod[0])
        eye = torch.eye(len(self.mean), dtype=torch.float64)
        normal = torch.distributions.MultivariateNormal(
            math.sqrt(a) * self.mean, a * self.covariance + (1 - a) * eye
        )
        return normal.log_prob(x[..., 0].double()).numpy()


def levels(x: Tensor) -> Tensor:
    """The nearest of 256 levels, uint8."""
    return ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
