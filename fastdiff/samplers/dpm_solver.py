"""DPM-Solver++(2M) (Lu et al. 2022): the probability-flow ODE by a two-step method on x_0."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastdiff.samplers.plan import Columns, levels, prediction_columns
from fastdiff.schedules import NoiseSchedule


def dpm_solver_columns(
    schedule: NoiseSchedule, visited: NDArray[np.int64], prediction_type: str
) -> Columns:
    """x_prev = sigma_prev/sigma x_t + alpha_prev (1 - e^-h) D, D of this x_0 and the last one.

    Algorithm 2 there, with lambda = log(alpha / sigma) and h its growth over a step. The first step
    has no x_0 before it, and the last one goes to h = infinity: both are of first order. Second
    order shows where lambda grows evenly; any spacing is allowed.
    """
    a, a_prev = levels(schedule, visited)
    sigma, sigma_prev = np.sqrt(1 - a), np.sqrt(1 - a_prev)
    growth = np.sqrt(a_prev) - sigma_prev * np.sqrt(a) / sigma
    with np.errstate(divide="ignore"):
        h = 0.5 * (np.log(a_prev / (1 - a_prev)) - np.log(a / (1 - a)))
    lean = np.zeros(len(visited))
    lean[1:-1] = 0.5 * h[1:-1] / h[:-2]
    return prediction_columns(schedule, visited, prediction_type) | {
        "c_x": sigma_prev / sigma,
        "c_0": growth * (1 + lean),
        "c_1": -growth * lean,
    }
