"""Which timesteps to train on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


class TimestepSampler(ABC):
    """A distribution over 0..T-1, and weights under which a mean of losses stays that of even t."""

    def __init__(self, num_timesteps: int) -> None:
        if num_timesteps < 1:
            raise ValueError(f"num_timesteps must be at least 1, got {num_timesteps}.")
        self.num_timesteps = num_timesteps

    @abstractmethod
    def probabilities(self) -> Array:
        """[T] above 0, of sum 1."""

    def sample(self, count: int, generator: np.random.Generator) -> tuple[NDArray[np.int64], Array]:
        """Timesteps [count], and the weights 1 / (T p_t) [count] of their losses."""
        p = self.probabilities()
        t = generator.choice(self.num_timesteps, size=count, p=p)
        return t, 1 / (self.num_timesteps * p[t])

    def update(self, t: ArrayLike, losses: ArrayLike) -> None:  # noqa: B027
        """Take in the losses [N] at timesteps t [N], on every rank those of all, in one order."""

    def state(self) -> dict[str, NDArray[Any]]:
        """What `load_state` needs to go on from here."""
        return {}

    def load_state(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on from a state; ValueError for one of another sampler."""
        mine = self.state()
        shapes = [{name: array.shape for name, array in s.items()} for s in (state, mine)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"the state of {type(self).__name__} holds {shapes[1] or 'nothing'}, got "
                f"{shapes[0] or 'nothing'}: it is that of another sampler or number of timesteps."
            )


class UniformTimesteps(TimestepSampler):
    """All timesteps alike."""

    def probabilities(self) -> Array:
        return np.full(self.num_timesteps, 1 / self.num_timesteps)


class LossSecondMoment(TimestepSampler):
    """By the root mean square of each timestep's last losses (Nichol and Dhariwal 2021, eq. 18).

    Even until every timestep has `history` losses. `uniform_share` of the probability stays even.
    Losses that are not finite are left out: they would be all that is sampled from then on.
    """

    def __init__(self, num_timesteps: int, history: int = 10, uniform_share: float = 0.001) -> None:
        super().__init__(num_timesteps)
        if history < 1 or not 0 < uniform_share <= 1:
            raise ValueError(
                f"history must be at least 1 and uniform_share in (0, 1], got {history} and "
                f"{uniform_share}."
            )
        self.uniform_share = uniform_share
        self._losses = np.zeros((num_timesteps, history))
        self._counts = np.zeros(num_timesteps, dtype=np.int64)

    @property
    def warmed_up(self) -> bool:
        """Whether every timestep has been seen often enough."""
        return bool((self._counts >= self._losses.shape[1]).all())

    def probabilities(self) -> Array:
        even = np.full(self.num_timesteps, 1 / self.num_timesteps)
        moments = np.sqrt((self._losses**2).mean(axis=1))
        if not self.warmed_up or not moments.any():
            return even
        p = (1 - self.uniform_share) * moments / moments.sum() + self.uniform_share * even
        return p / p.sum()

    def update(self, t: ArrayLike, losses: ArrayLike) -> None:
        """As the base's; ValueError for shapes or a t that do not fit."""
        steps, values = np.asarray(t, dtype=np.int64), np.asarray(losses, dtype=np.float64)
        if steps.ndim != 1 or steps.shape != values.shape:
            raise ValueError(
                f"t and losses must be [N] both, got {[*steps.shape]} and {[*values.shape]}."
            )
        if steps.size and not 0 <= steps.min() <= steps.max() < self.num_timesteps:
            raise ValueError(
                f"t must lie in 0..{self.num_timesteps - 1}, got {steps.min()}..{steps.max()}."
            )
        finite = np.isfinite(values)
        steps, values = steps[finite], values[finite]
        # A t that comes twice takes two places; of more than there are, the last ones stay.
        slots = (self._counts[steps] + _occurrence(steps)) % self._losses.shape[1]
        self._losses[steps, slots] = values
        np.add.at(self._counts, steps, 1)

    def state(self) -> dict[str, NDArray[Any]]:
        return {"losses": self._losses.copy(), "counts": self._counts.copy()}

    def load_state(self, state: Mapping[str, NDArray[Any]]) -> None:
        super().load_state(state)
        self._losses = np.array(state["losses"], dtype=np.float64)
        self._counts = np.array(state["counts"], dtype=np.int64)


SAMPLERS: dict[str, type[TimestepSampler]] = {
    "uniform": UniformTimesteps,
    "loss_second_moment": LossSecondMoment,
}


def _occurrence(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many times each value has come before in the list."""
    order = np.argsort(values, kind="stable")
    sorted_values = values[order]
    first = np.searchsorted(sorted_values, sorted_values, side="left")
    before = np.empty(len(values), dtype=np.int64)
    before[order] = np.arange(len(values)) - first
    return before
