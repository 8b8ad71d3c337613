"""diffusers' scheduler_config.json and what it says in fastdiff's words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastdiff.checkpoints._reading import CheckpointError
from fastdiff.diffusion import Clip, DynamicThresholding
from fastdiff.schedules import NoiseSchedule

# JSON has no word for infinity, which bounds nothing more in float32 than this does.
LARGEST = float(np.finfo(np.float32).max)
_PREDICTIONS = {"epsilon": "epsilon", "sample": "x_start", "v_prediction": "v"}
# The *_log names are diffusers' way to compute the same variances.
_VARIANCES = {
    "fixed_small": "fixed_small",
    "fixed_large": "fixed_large",
    "learned": "learned",
    "learned_range": "learned_range",
    "fixed_small_log": "fixed_small",
    "fixed_large_log": "fixed_large",
}


@dataclass(frozen=True)
class Process:
    """A scheduler config's content: the schedule and how the model's output is read.

    `clip` is what `fastdiff.sample` takes: how predicted images are clipped, False for not at all.
    """

    schedule: NoiseSchedule
    prediction_type: str
    variance_type: str
    clip: Clip


def process_of(config: Mapping[str, Any], name: str) -> Process:
    """Read a scheduler config, with DDPMScheduler's defaults; `name` is the file, for errors."""
    try:
        schedule, clip = _schedule(config), _clip(config)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{name} describes no process of fastdiff's: {error}") from None
    return Process(
        schedule=schedule,
        prediction_type=_translated(config, "prediction_type", "epsilon", _PREDICTIONS, name),
        variance_type=_translated(config, "variance_type", "fixed_small", _VARIANCES, name),
        clip=clip,
    )


def config_of(process: Process) -> dict[str, Any]:
    """Write a process as the config of a diffusers DDPMScheduler."""
    predictions = {ours: theirs for theirs, ours in _PREDICTIONS.items()}
    if process.prediction_type not in predictions:
        raise CheckpointError(
            f"diffusers has no word for prediction type {process.prediction_type!r}; "
            f"its formats hold {', '.join(predictions)}."
        )
    return {
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": process.schedule.num_timesteps,
        **_betas_of(process.schedule),
        "prediction_type": predictions[process.prediction_type],
        "variance_type": process.variance_type,
        **_clip_config(process.clip),
    }


def _clip(config: Mapping[str, Any]) -> Clip:
    if config.get("thresholding"):
        return DynamicThresholding(
            percentile=float(config.get("dynamic_thresholding_ratio", 0.995)),
            max_value=float(config.get("sample_max_value", 1.0)),
        )
    return float(config.get("clip_sample_range", 1.0)) if config.get("clip_sample", True) else False


def _clip_config(clip: Clip) -> dict[str, Any]:
    if isinstance(clip, DynamicThresholding):
        return {
            "thresholding": True,
            "dynamic_thresholding_ratio": clip.percentile,
            "sample_max_value": min(clip.max_value, LARGEST),
        }
    return {"clip_sample": clip is not False, "clip_sample_range": float(clip or 1.0)}


def _schedule(config: Mapping[str, Any]) -> NoiseSchedule:
    steps = config.get("num_train_timesteps", 1000)
    ends = float(config.get("beta_start", 1e-4)), float(config.get("beta_end", 0.02))
    kind = config.get("beta_schedule", "linear")
    if config.get("trained_betas") is not None:
        schedule = NoiseSchedule.from_betas(config["trained_betas"])
    elif kind == "linear":
        schedule = NoiseSchedule.linear(steps, *ends)
    elif kind == "scaled_linear":
        schedule = NoiseSchedule.scaled_linear(steps, *ends)
    elif kind == "squaredcos_cap_v2":
        schedule = NoiseSchedule.cosine(steps)
    elif kind == "sigmoid":
        schedule = NoiseSchedule.sigmoid(steps, *ends)
    elif kind == "laplace":
        schedule = NoiseSchedule.laplace(steps)
    else:
        raise ValueError(
            f"beta_schedule is {kind!r}; fastdiff knows linear, scaled_linear, squaredcos_cap_v2, "
            f"sigmoid and laplace."
        )
    if config.get("rescale_betas_zero_snr"):
        schedule = schedule.rescale_zero_terminal_snr()
    return schedule


def _betas_of(schedule: NoiseSchedule) -> dict[str, Any]:
    """Name the schedule if it has a name in diffusers, else list its betas."""
    first, last = (float(f"{beta:.12g}") for beta in schedule.betas[[0, -1]])
    for named in (
        {"beta_schedule": "linear", "beta_start": first, "beta_end": last},
        {"beta_schedule": "scaled_linear", "beta_start": first, "beta_end": last},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"beta_schedule": "laplace"},
    ):
        try:
            candidate = _schedule({"num_train_timesteps": schedule.num_timesteps, **named})
        except ValueError:  # no schedule of that name has such ends
            continue
        if np.allclose(candidate.betas, schedule.betas, rtol=1e-10, atol=0):
            return named
    return {"trained_betas": schedule.betas.tolist()}


def _translated(
    config: Mapping[str, Any], key: str, default: str, words: Mapping[str, str], name: str
) -> str:
    word = config.get(key) or default
    if word not in words:
        raise CheckpointError(f"{name} has {key} {word!r}; fastdiff knows {', '.join(words)}.")
    return words[word]
