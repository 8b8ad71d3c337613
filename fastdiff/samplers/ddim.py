"""DDIM (Song et al. 2021): from deterministic (eta = 0) to ancestral (eta = 1), and its inverse."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastdiff.diffusion import conversion
from fastdiff.samplers.plan import Columns, levels, prediction_columns
from fastdiff.schedules import NoiseSchedule


def ddim_columns(
    schedule: NoiseSchedule,
    visited: NDArray[np.int64],
    prediction_type: str,
    *,
    eta: float,
    rederive_eps: bool,
) -> Columns:
    """x_prev = sqrt(a_prev) x_0 + sqrt(1 - a_prev - sigma^2) eps + sigma z (eq. 12, 16)."""
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must lie in [0, 1], got {eta}.")
    a, a_prev = levels(schedule, visited)
    sigma = eta * np.sqrt((1 - a_prev) / (1 - a) * (1 - a / a_prev))
    direction = np.sqrt(np.maximum(1 - a_prev - sigma**2, 0.0))
    # eps follows from x_t and the clipped x_0, or from x_t and the model's output as it came.
    source = "x_start" if rederive_eps else prediction_type
    eps_of_x_t, eps_of_source = (c[visited] for c in conversion(schedule, source, "epsilon"))
    columns = prediction_columns(schedule, visited, prediction_type)
    columns |= {"c_0": np.sqrt(a_prev), "c_x": direction * eps_of_x_t, "sigma": sigma}
    if rederive_eps:
        return columns | {"c_0": np.sqrt(a_prev) + direction * eps_of_source}
    return columns | {"c_o": direction * eps_of_source}


def ddim_reverse_columns(schedule: NoiseSchedule, prediction_type: str) -> Columns:
    """Row T-1-t leads from t up to t + 1, the last one to no signal at all (eq. 12, reversed).

    As guided-diffusion's reverse ODE: epsilon is taken from the x_0 of where the step begins.
    """
    visited = np.arange(schedule.num_timesteps - 1, -1, -1)
    above = np.append(schedule.alphas_cumprod[1:], 0.0)[visited]
    of_x_t, of_x_start = (c[visited] for c in conversion(schedule, "x_start", "epsilon"))
    direction = np.sqrt(1 - above)
    return prediction_columns(schedule, visited, prediction_type) | {
        "c_0": np.sqrt(above) + direction * of_x_start,
        "c_x": direction * of_x_t,
    }


def ddim_inverse_columns(
    schedule: NoiseSchedule, visited: NDArray[np.int64], prediction_type: str
) -> Columns:
    """The steps of DDIM backwards, least noisy first: row i leads up to visited[i].

    Eq. 13 with eps taken where the step ends: at the coming t, of the x at hand.
    """
    a, a_prev = levels(schedule, visited)
    eps_of_x, eps_of_out = (c[visited] for c in conversion(schedule, prediction_type, "epsilon"))
    x_start_of_eps = -np.sqrt((1 - a_prev) / a_prev)
    eps_coefficient = np.sqrt(1 - a) + np.sqrt(a) * x_start_of_eps
    return {
        "k_x": 1 / np.sqrt(a_prev) + x_start_of_eps * eps_of_x,
        "k_o": x_start_of_eps * eps_of_out,
        "c_x": np.sqrt(a / a_prev) + eps_coefficient * eps_of_x,
        "c_o": eps_coefficient * eps_of_out,
    }
