"""The progressive lossy code of Ho et al. 2020, section 4.3."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastdiff._files import write_whole

Array = NDArray[np.float64]


@dataclass(frozen=True)
class RateDistortion:
    """What has been received when x_t is there, [T] each, and how well it tells x_0.

    timesteps: 0..T-1.
    rate: bits a dimension sent for x_t and all noisier states, the mean over images.
    distortion: root mean square error of the model's x_0, over images and dimensions, on the scale
        of 0..255.
    """

    timesteps: NDArray[np.int64]
    rate: Array
    distortion: Array

    @classmethod
    def of_terms(cls, prior: Array, vb: Array, x_start_mse: Array) -> RateDistortion:
        """From the terms of the bound: prior [N], vb and x_start_mse [N, T], t ascending.

        The term at t sends the state below it, x_0 at t = 0; so x_t has cost the terms above t.
        """
        above = np.cumsum(vb[:, :0:-1], axis=1)[:, ::-1]
        sent = prior[:, None] + np.concatenate([above, np.zeros((len(vb), 1))], axis=1)
        rms = np.sqrt(x_start_mse.mean(0))
        return cls(np.arange(vb.shape[1]), sent.mean(0), 127.5 * rms)

    def save(self, path: str | Path) -> None:
        """Draw rate and distortion by reverse step, and one over the other (Ho's Figure 5).

        The ending says the format, .png or .svg say. Raises ImportError without matplotlib.
        """
        from matplotlib.figure import Figure

        figure = Figure(figsize=(12, 3.6), layout="constrained")
        steps = len(self.timesteps) - self.timesteps
        by_step, by_step_too, curve = figure.subplots(1, 3)
        by_step.plot(steps, self.distortion)
        by_step.set(xlabel="reverse steps (T - t)", ylabel="distortion (RMSE on 0..255)")
        by_step_too.plot(steps, self.rate)
        by_step_too.set(xlabel="reverse steps (T - t)", ylabel="rate (bits/dim)")
        curve.plot(self.rate, self.distortion)
        curve.set(xlabel="rate (bits/dim)", ylabel="distortion (RMSE on 0..255)")
        for axes in (by_step, by_step_too, curve):
            axes.set_ylim(bottom=0)
            axes.grid(alpha=0.3)
        with write_whole(path) as unfinished:
            figure.savefig(unfinished, format=Path(path).suffix.lstrip(".") or "png", dpi=120)
