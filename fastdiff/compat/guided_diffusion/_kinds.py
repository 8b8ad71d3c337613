"""Named schedules, and what models predict, whence the variance comes, what training minimises."""

from __future__ import annotations

import enum
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fastdiff.checkpoints.guided_diffusion import SCHEDULES, schedule_of

Array = NDArray[np.float64]


def get_named_beta_schedule(schedule_name: str, num_diffusion_timesteps: int) -> Array:
    """The betas [T] of "linear" or "cosine"; NotImplementedError for another name."""
    if schedule_name not in SCHEDULES:
        raise NotImplementedError(
            f"unknown beta schedule: {schedule_name}; choose one of {', '.join(SCHEDULES)}."
        )
    return schedule_of(schedule_name, num_diffusion_timesteps).betas.copy()


def betas_for_alpha_bar(
    num_diffusion_timesteps: int, alpha_bar: Callable[[float], float], max_beta: float = 0.999
) -> Array:
    """The betas [T] of a given alphas_cumprod on [0, 1]."""
    edges = [alpha_bar(i / num_diffusion_timesteps) for i in range(num_diffusion_timesteps + 1)]
    return np.minimum(1 - np.divide(edges[1:], edges[:-1]), max_beta)


class ModelMeanType(enum.Enum):
    """What the model predicts."""

    PREVIOUS_X = enum.auto()
    START_X = enum.auto()
    EPSILON = enum.auto()


class ModelVarType(enum.Enum):
    """Where the variance comes from."""

    LEARNED = enum.auto()
    FIXED_SMALL = enum.auto()
    FIXED_LARGE = enum.auto()
    LEARNED_RANGE = enum.auto()


class LossType(enum.Enum):
    """What training minimises."""

    MSE = enum.auto()
    RESCALED_MSE = enum.auto()
    KL = enum.auto()
    RESCALED_KL = enum.auto()

    def is_vb(self) -> bool:
        """Whether it is the variational bound itself."""
        return self in (LossType.KL, LossType.RESCALED_KL)


PREDICTIONS = {
    ModelMeanType.PREVIOUS_X: "posterior_mean",
    ModelMeanType.START_X: "x_start",
    ModelMeanType.EPSILON: "epsilon",
}
