"""Walks between two images: along DDIM's latents, or through Ho's diffused mixtures."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastdiff.diffusion import q_sample
from fastdiff.ops.philox_normal import philox_normal
from fastdiff.samplers.sampling import sample
from fastdiff.samplers.step import Model
from fastdiff.schedules import NoiseSchedule

ENCODING_STREAM = 1


def slerp(a: Tensor, b: Tensor, weights: Tensor) -> Tensor:
    """Spherical interpolation, sample by sample (Song et al. 2021, DDIM, eq. 67).

    Args:
        a, b: [N, ...] floating; computed in float32 at least.
        weights: [W], 0 gives a and 1 gives b.

    Returns:
        [W, N, ...] of a's dtype; where a and b are parallel, the straight line.
    """
    _check_pair(a, b, weights)
    dtype = torch.promote_types(a.dtype, torch.float32)
    x, y = a.to(dtype).flatten(1), b.to(dtype).flatten(1)
    cosine = torch.nn.functional.cosine_similarity(x, y, dim=1).clamp(-1, 1)
    angle = torch.arccos(cosine)[:, None]
    w = weights.to(x)[:, None, None]
    parallel = angle.sin() < 1e-4
    arc = angle.sin().where(~parallel, 1.0)
    of_x = torch.where(parallel, 1 - w, ((1 - w) * angle).sin() / arc)
    of_y = torch.where(parallel, w, (w * angle).sin() / arc)
    return (of_x * x + of_y * y).to(a.dtype).reshape(len(weights), *a.shape)


def interpolate_ddim(
    model: Model, a: Tensor, b: Tensor, weights: Tensor, *, schedule: NoiseSchedule, **options: Any
) -> Tensor:
    """DDIM images along the great circle between two latents (Song et al. 2021, section 5.3).

    Args:
        a, b: x_T [N, C, ...]: noise, or what ddim_invert gave for two images.
        weights: [W] in [0, 1].
        options: as for sample, without sampler and noise.

    Returns:
        [W, N, C, ...].
    """
    latents = slerp(a, b, weights)
    return _sample_all(model, latents, schedule=schedule, sampler="ddim", **options)


def interpolate_ddpm(
    model: Model,
    a: Tensor,
    b: Tensor,
    weights: Tensor,
    *,
    t: int,
    schedule: NoiseSchedule,
    shared_noise: bool = False,
    seed: int = 0,
    sample_index: int = 0,
    **options: Any,
) -> Tensor:
    """Diffuse two images to t, mix them linearly, denoise (Ho et al. 2020, section 4.3).

    All weights are given the same noise, on the way up and on the way down, as Ho did.

    Args:
        a, b: x_0 [N, C, ...] in [-1, 1].
        weights: [W] in [0, 1].
        t: how far up, a visited timestep of the steps taken down.
        shared_noise: a and b are diffused with one noise; else with one each, as in the paper.
        options: as for sample, without start and noise.

    Returns:
        [W, N, C, ...].
    """
    _check_pair(a, b, weights)
    index = torch.arange(sample_index, sample_index + len(a), device=a.device)
    up = torch.full_like(index, t)

    def diffused(x_start: Tensor, draw: int) -> Tensor:
        z = philox_normal(
            a.shape, seed, sample_index=index, draw=draw, stream=ENCODING_STREAM, dtype=a.dtype
        )
        return q_sample(schedule, x_start, up, z)

    w = weights.to(a).view(-1, *[1] * a.ndim)
    mixed = (1 - w) * diffused(a, 0) + w * diffused(b, 0 if shared_noise else 1)
    return _sample_all(
        model,
        mixed,
        schedule=schedule,
        start=t,
        seed=seed,
        sample_index=index.repeat(len(weights)),
        **options,
    )


def _sample_all(model: Model, x: Tensor, **options: Any) -> Tensor:
    """sample from every x [W, N, C, ...], as one batch; labels [N] go to each weight."""
    W, N = x.shape[:2]
    if options.get("class_labels") is not None:
        options["class_labels"] = options["class_labels"].repeat(W)
    options.setdefault("sample_index", torch.arange(N).repeat(W))
    batch = x.flatten(0, 1)
    return sample(model, batch.shape, noise=batch, **options).reshape(x.shape)


def _check_pair(a: Tensor, b: Tensor, weights: Tensor) -> None:
    if a.shape != b.shape or a.ndim < 2:
        raise ValueError(
            f"the two ends must both be [N, ...]; got {list(a.shape)} and {list(b.shape)}."
        )
    if weights.ndim != 1:
        raise ValueError(f"weights must be [W], got {list(weights.shape)}.")
