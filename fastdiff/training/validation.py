"""The loss on images that a run never trains on, by timestep."""

from __future__ import annotations

import numpy as np
import torch

from fastdiff.checkpoints import Pretrained
from fastdiff.losses import training_losses
from fastdiff.training.data import ImageData
from fastdiff.training.draws import VALIDATION_STREAM

BATCH = 250


@torch.no_grad()
def loss_by_timestep(
    pretrained: Pretrained, data: ImageData, *, seed: int, points: int = 20
) -> list[tuple[int, float]]:
    """(t, L_simple) at evenly spaced timesteps, the mean over all images of `data`.

    The noise is that of the seed, the image and the point, the same at every validation.

    Raises ValueError without images.
    """
    if not len(data):
        raise ValueError("the run holds no images out; set hold_out")
    device = pretrained.unet.conv_in.weight.device
    total = pretrained.schedule.num_timesteps
    table = []
    for point, t in enumerate(np.linspace(0, total - 1, min(points, total)).astype(int)):
        losses = []
        for part in torch.arange(len(data)).split(BATCH):
            x_start, labels = data.batch(part, device)
            found = training_losses(
                pretrained.model,
                x_start,
                torch.full((len(part),), int(t), device=device),
                schedule=pretrained.schedule,
                prediction_type=pretrained.prediction_type,
                variance_type=pretrained.variance_type,
                objective="hybrid" if pretrained.variance_type.startswith("learned") else "simple",
                class_labels=labels,
                seed=seed,
                sample_index=part.to(device),
                draw=point,
                stream=VALIDATION_STREAM,
            )
            losses.append(found.simple)
        table.append((int(t), torch.cat(losses).mean().item()))
    return table
