"""At which timesteps the terms of the bound are computed, and how their sum is estimated."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Visits:
    """timesteps [N, K] and the stretches they were drawn from: sizes [M] of those beyond t = 0, two
    draws of each, one behind the other; None where all timesteps are there."""

    timesteps: NDArray[np.int64]
    sizes: NDArray[np.int64] | None

    def total(self, terms: Array) -> tuple[Array, Array]:
        """The sum of all terms [N] from those visited [N, K], and its standard error [N]."""
        if self.sizes is None:
            return terms.sum(1), np.zeros(len(terms))
        first, second = terms[:, 1::2], terms[:, 2::2]
        estimate = terms[:, 0] + (self.sizes * (first + second) / 2).sum(1)
        # Two of n drawn without replacement: the variance of their mean is s^2 / 2 * (1 - 2 / n).
        of_means = (first - second) ** 2 / 4 * (1 - 2 / self.sizes)
        return estimate, np.sqrt((self.sizes**2 * of_means).sum(1))


def all_timesteps(T: int, N: int) -> Visits:
    """0..T-1 for each of N images."""
    return Visits(np.broadcast_to(np.arange(T), (N, T)), None)


def some_timesteps(T: int, count: int, seed: int, sample_index: Tensor) -> Visits:
    """t = 0, and two of each of (count - 1) / 2 stretches of 1..T-1, drawn for each image alone.

    The stretches are short where terms are large and steep: their ends grow with the square.
    Raises ValueError unless count is odd and lies in 3..T-1.
    """
    if count % 2 == 0 or not 3 <= count < T:
        raise ValueError(
            f"timesteps must be None for all {T}, or odd and in 3..{T - 1}, got {count}: t = 0 and "
            "two from each stretch of the others."
        )
    stretches = (count - 1) // 2
    ends = 1 + (T - 1) * (np.arange(stretches + 1) / stretches) ** 2
    ends = np.maximum(np.rint(ends).astype(np.int64), 1 + 2 * np.arange(stretches + 1))
    sizes = np.diff(ends).astype(np.int64)
    rows = []
    for index in sample_index.tolist():
        generator = np.random.default_rng((seed, index))
        first = np.floor(generator.random(stretches) * sizes).astype(np.int64)
        second = np.floor(generator.random(stretches) * (sizes - 1)).astype(np.int64)
        second += second >= first
        rows.append(np.stack([ends[:-1] + first, ends[:-1] + second], 1).reshape(-1))
    timesteps = np.zeros((len(rows), count), np.int64)
    if rows:
        timesteps[:, 1:] = rows
    return Visits(timesteps, sizes)
