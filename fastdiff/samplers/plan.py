"""What a sampler is: the timesteps it visits and the table of coefficients that takes it there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastdiff.diffusion import check_prediction_type, conversion
from fastdiff.ops.denoise_step import COLUMNS
from fastdiff.schedules import NoiseSchedule, Table, checked_timesteps, timesteps

Columns = dict[str, Table]


@dataclass(frozen=True)
class Plan:
    """Row i of ``table`` [S, len(COLUMNS)] float64 is the step whose model call is at timesteps[i].

    Draw 0 of the noise is x_T, draw i + 1 belongs to row i.
    """

    timesteps: NDArray[np.int64]
    table: Table

    @classmethod
    def of(cls, visited: NDArray[np.int64], columns: Columns) -> Plan:
        """Columns not named are 0."""
        table = np.zeros((len(visited), len(COLUMNS)))
        for name, column in columns.items():
            table[:, COLUMNS.index(name)] = column
        return cls(visited, table)

    @property
    def multistep(self) -> bool:
        """Whether a step asks for the pred_x_start of the one before."""
        return bool(self.table[:, COLUMNS.index("c_1")].any())

    @property
    def stochastic(self) -> bool:
        """Whether any step adds noise."""
        return bool(self.table[:, COLUMNS.index("sigma")].any())


def visited_timesteps(
    schedule: NoiseSchedule, steps: int | str | Sequence[int] | None, spacing: str
) -> NDArray[np.int64]:
    """All timesteps (None), so many by spacing, section counts, or the given ones; decreasing."""
    T = schedule.num_timesteps
    if steps is None:
        return np.arange(T - 1, -1, -1)
    if isinstance(steps, (int, str, np.integer)):
        return timesteps(T, steps if isinstance(steps, str) else int(steps), spacing)
    return checked_timesteps(T, steps)


def levels(schedule: NoiseSchedule, visited: NDArray[np.int64]) -> tuple[Table, Table]:
    """alphas_cumprod at each visited timestep and at the one the step leads to (1 at the end)."""
    a = schedule.alphas_cumprod[visited]
    return a, np.append(a[1:], 1.0)


def prediction_columns(
    schedule: NoiseSchedule, visited: NDArray[np.int64], prediction_type: str
) -> Columns:
    """k_x and k_o: x_0 = k_x x_t + k_o out, of the schedule that the model was trained on."""
    check_prediction_type(prediction_type)
    k_x, k_o = (c[visited] for c in conversion(schedule, prediction_type, "x_start"))
    if not np.isfinite(k_x).all():
        raise ValueError(
            f"the schedule has no signal at t = {visited[0]} and {prediction_type} does not "
            "determine x_start there: use a v or x_start model, or steps that leave that t out."
        )
    return {"k_x": k_x, "k_o": k_o}
