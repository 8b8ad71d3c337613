"""What chance decides of a step, by each image's place in the whole run.

Image i of step s is number s * batch_size + i, whichever rank takes it: that number keys its noise,
and a generator of the seed and the step gives the rest for the whole batch, of which each rank
takes its own part. So the curve of a run is the same on any number of ranks, and goes on where it
was cut. Dropout alone belongs to the rank: its masks are drawn inside the network.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fastdiff.training.config import TrainConfig

if TYPE_CHECKING:
    from fastdiff.timestep_samplers import TimestepSampler

TRAINING_STREAM = 1
VALIDATION_STREAM = 2


@dataclass(frozen=True)
class Draws:
    """Of a step's whole batch, [B] each, on the CPU."""

    sample_index: Tensor  # int64, what keys the noise
    t: Tensor  # int64
    weights: Tensor  # float32, of the losses at t
    flipped: Tensor  # bool
    label_hidden: Tensor  # bool


def draw(config: TrainConfig, timesteps: TimestepSampler, step: int) -> Draws:
    """What chance decides of the step after `step` finished ones."""
    size = config.batch_size
    generator = np.random.default_rng((config.seed, TRAINING_STREAM, step))
    t, weights = timesteps.sample(size, generator)
    flips, hides = generator.random(size), generator.random(size)
    return Draws(
        sample_index=step * size + torch.arange(size),
        t=torch.as_tensor(t, dtype=torch.int64),
        weights=torch.as_tensor(weights, dtype=torch.float32),
        flipped=torch.from_numpy(flips < (0.5 if config.horizontal_flips else 0.0)),
        label_hidden=torch.from_numpy(hides < config.label_dropout),
    )


def seed_dropout(seed: int, step: int, rank: int) -> None:
    """Make the step's dropout masks those of the seed, the step and the rank."""
    torch.manual_seed(
        int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0])
    )
