"""guided_diffusion.resample: which timesteps to train on, on one process or several."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from fastdiff.timestep_samplers import LossSecondMoment

Weights = NDArray[np.float64]


def create_named_schedule_sampler(name: str, diffusion: Any) -> ScheduleSampler:
    """The sampler called "uniform" or "loss-second-moment"; NotImplementedError for another."""
    if name == "uniform":
        return UniformSampler(diffusion)
    if name == "loss-second-moment":
        return LossSecondMomentResampler(diffusion)
    raise NotImplementedError(
        f"unknown schedule sampler: {name}; choose uniform or loss-second-moment."
    )


class ScheduleSampler(ABC):
    """A distribution over timesteps, for importance sampling that keeps the loss unbiased."""

    @abstractmethod
    def weights(self) -> Weights:
        """[T] above 0, not necessarily of sum 1."""

    def sample(self, batch_size: int, device: torch.device | str) -> tuple[Tensor, Tensor]:
        """Timesteps [batch_size] int64 drawn by NumPy's global generator, and float32 weights."""
        weights = self.weights()
        p = weights / weights.sum()
        drawn = np.random.choice(len(p), size=(batch_size,), p=p)
        corrections = 1 / (len(p) * p[drawn])
        return (
            torch.from_numpy(drawn).long().to(device),
            torch.from_numpy(corrections).float().to(device),
        )


class UniformSampler(ScheduleSampler):
    """All timesteps alike."""

    def __init__(self, diffusion: Any) -> None:
        self.diffusion = diffusion
        self._weights = np.ones([diffusion.num_timesteps])

    def weights(self) -> Weights:
        return self._weights


class LossAwareSampler(ScheduleSampler):
    """Weights that follow the losses seen, the same on all processes."""

    def update_with_local_losses(self, local_ts: Tensor, local_losses: Tensor) -> None:
        """Take in this process's timesteps [N] and losses [N], and those of all the others."""
        seen = [(local_ts.tolist(), local_losses.tolist())]
        if dist.is_available() and dist.is_initialized():
            everyone: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(everyone, seen[0])
            seen = everyone
        self.update_with_all_losses(
            [t for timesteps, _ in seen for t in timesteps],
            [loss for _, losses in seen for loss in losses],
        )

    @abstractmethod
    def update_with_all_losses(self, ts: Iterable[int], losses: Iterable[float]) -> None:
        """Take in timesteps and losses, the same ones on every process."""


class LossSecondMomentResampler(LossAwareSampler):
    """Weights by the root mean square of each timestep's last losses (Nichol and Dhariwal 2021,
    eq. 18), even until each has been seen history_per_term times."""

    def __init__(
        self, diffusion: Any, history_per_term: int = 10, uniform_prob: float = 0.001
    ) -> None:
        self.diffusion = diffusion
        self.history_per_term = history_per_term
        self.uniform_prob = uniform_prob
        self._sampler = LossSecondMoment(diffusion.num_timesteps, history_per_term, uniform_prob)

    def weights(self) -> Weights:
        if not self._sampler.warmed_up:
            return np.ones([self.diffusion.num_timesteps])
        return self._sampler.probabilities()

    def update_with_all_losses(self, ts: Iterable[int], losses: Iterable[float]) -> None:
        self._sampler.update([*ts], [*losses])
