"""Ancestral sampling (Ho et al. 2020, Algorithm 2), on all timesteps or some of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastdiff.diffusion import check_variance_type, fixed_variance, learned_log_variance
from fastdiff.samplers.plan import Columns, prediction_columns
from fastdiff.schedules import NoiseSchedule


def ddpm_columns(
    schedule: NoiseSchedule,
    visited: NDArray[np.int64],
    prediction_type: str,
    *,
    variance_type: str,
) -> Columns:
    """x_prev ~ N(posterior mean of pred_x_start, variance), by the posterior of the visited levels.

    The last step adds no noise.
    """
    kept = schedule.respace(visited)
    noisy = np.append(np.ones(len(visited) - 1), 0.0)
    columns = prediction_columns(schedule, visited, prediction_type)
    columns |= {"c_0": kept.posterior_mean_coef1[::-1], "c_x": kept.posterior_mean_coef2[::-1]}
    if check_variance_type(variance_type):
        offset, scale = learned_log_variance(kept, variance_type)
        return columns | {
            "sigma": noisy,
            "l_0": noisy * offset[::-1],
            "l_v": noisy * scale[::-1],
        }
    variance, _ = fixed_variance(kept, variance_type)
    return columns | {"sigma": noisy * np.sqrt(variance[::-1])}
