"""The variational bound of images, term by term."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdiff import ops
from fastdiff.diffusion import Clip, convert, noising_table, p_mean_variance
from fastdiff.engine import planned
from fastdiff.likelihood.images import BOUND_STREAM, checked, in_range
from fastdiff.likelihood.rate_distortion import RateDistortion
from fastdiff.likelihood.timesteps import all_timesteps, some_timesteps
from fastdiff.losses import bound_term, prior_term
from fastdiff.samplers.progress import progress_bar
from fastdiff.samplers.step import device_and_dtype
from fastdiff.schedules import NoiseSchedule

Array = NDArray[np.float64]
Model = Callable[..., Tensor]


@dataclass(frozen=True)
class BitsPerDim:
    """The variational bound of N images in bits a dimension (Ho et al. 2020, eq. 5).

    total: [N], prior + the sum of all terms, or an estimate of it from some.
    prior: [N], L_T.
    timesteps: [N, K] int64, where the terms were computed; all of 0..T-1 unless some were drawn.
    vb: [N, K], the term there: L_0 at 0, else L_t.
    x_start_mse, epsilon_mse: [N, K], of what the model takes x_0 (clipped) and epsilon to be.
    standard_error: [N], of total for the timesteps that were left out; 0 if none were.
    """

    total: Array
    prior: Array
    timesteps: NDArray[np.int64]
    vb: Array
    x_start_mse: Array
    epsilon_mse: Array
    standard_error: Array

    def rate_distortion(self) -> RateDistortion:
        """The progressive lossy code of these images; ValueError unless all terms are there."""
        T = self.timesteps.shape[1]
        if not (self.timesteps == np.arange(T)).all():
            raise ValueError("rate and distortion need every timestep: leave timesteps out.")
        return RateDistortion.of_terms(self.prior, self.vb, self.x_start_mse)


def bits_per_dim(
    model: Model,
    images: Tensor,
    *,
    schedule: NoiseSchedule,
    prediction_type: str = "epsilon",
    variance_type: str = "fixed_small",
    clip: Clip = True,
    class_labels: Tensor | None = None,
    timesteps: int | None = None,
    seed: int = 0,
    sample_index: int | Tensor = 0,
    batch_size: int = 128,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    progress: bool | Callable[[int, int], object] = False,
) -> BitsPerDim:
    """The bound on the negative log likelihood of images, in bits a dimension.

    One x_t of each image and timestep: an unbiased estimate of the expectation over the noise, that
    of (seed, sample index, t) alone, whatever the batch.

    Args:
        model: called as model(x_t, t), t [B] int64, with the keyword class_labels where they are
            given; returns [B, C, ...], or [B, 2C, ...] with a learned variance.
        images: [N, C, ...] uint8.
        schedule, prediction_type, variance_type, clip: as for `fastdiff.sample`.
        class_labels: [N] int64, or None.
        timesteps: None for all; or how many an image, an odd number from 3 to T - 1: t = 0, and
            two from each of evenly many stretches of the others, from which total is estimated
            without bias and standard_error tells how well.
        seed: of the noise, 0..2**64-1.
        sample_index: of the first image, or [N] int64; keys its noise.
        batch_size: calls of the model at once, of whatever images and timesteps.
        device, dtype: default those of the model's parameters; dtype is what the model is called
            with, terms are computed in float32, or float64 if it is.
        progress: show a bar; or show(done, total) in calls of the model, by image and timestep.

    Raises:
        TypeError: images that are not uint8.
        ValueError: an unknown option, or a shape or number that does not fit.
    """
    index = checked(images, class_labels, sample_index)
    T, N = schedule.num_timesteps, len(images)
    visits = all_timesteps(T, N) if timesteps is None else some_timesteps(T, timesteps, seed, index)
    device, dtype = device_and_dtype(model, device, dtype)
    wide = torch.promote_types(dtype, torch.float32)
    terms = Terms(planned(model), schedule, prediction_type, variance_type, clip, seed, dtype)
    found = np.zeros((3, visits.timesteps.size))
    given = nullcontext(progress) if callable(progress) else nullcontext()
    bar = progress_bar("bits per dimension") if progress is True else given
    with torch.no_grad(), bar as show:
        for pairs in torch.arange(visits.timesteps.size).split(batch_size):
            image = pairs // visits.timesteps.shape[1]
            t = torch.from_numpy(visits.timesteps.reshape(-1)[pairs.numpy()]).to(device)
            labels = None if class_labels is None else class_labels[image.to(class_labels.device)]
            found[:, pairs.numpy()] = terms(
                in_range(images[image.to(images.device)], device, wide),
                t,
                index[image].to(device),
                None if labels is None else labels.to(device),
            )
            if show is not None:
                show(int(pairs[-1]) + 1, visits.timesteps.size)
        prior = np.concatenate(
            [
                prior_term(schedule, in_range(part, device, torch.float64)).cpu().numpy()
                for part in images.split(batch_size)
            ]
            or [np.zeros(0)]
        )
    vb, x_start_mse, epsilon_mse = found.reshape(3, *visits.timesteps.shape)
    estimate, error = visits.total(vb)
    return BitsPerDim(
        prior + estimate, prior, visits.timesteps, vb, x_start_mse, epsilon_mse, error
    )


@dataclass(frozen=True)
class Terms:
    """A model's term of the bound and its errors, for pairs of an image and a timestep."""

    model: Model
    schedule: NoiseSchedule
    prediction_type: str
    variance_type: str
    clip: Clip
    seed: int
    dtype: torch.dtype

    def __call__(
        self, x_start: Tensor, t: Tensor, index: Tensor, class_labels: Tensor | None
    ) -> Array:
        """[3, B]: the term in bits a dimension, x_0's and epsilon's mean squared error."""
        x_t, noise, _ = ops.q_sample(
            x_start,
            t,
            noising_table(self.schedule, x_start.device, self.prediction_type),
            seed=self.seed,
            sample_index=index,
            draw=t,
            stream=BOUND_STREAM,
            return_noise=True,
        )
        assert noise is not None
        given: dict[str, Any] = {} if class_labels is None else {"class_labels": class_labels}
        output = self.model(x_t.to(self.dtype), t, **given).to(x_t.dtype)
        p = p_mean_variance(
            self.schedule,
            output,
            x_t,
            t,
            prediction_type=self.prediction_type,
            variance_type=self.variance_type,
            clip=self.clip,
        )
        epsilon = convert(self.schedule, p.pred_x_start, x_t, t, source="x_start", target="epsilon")
        rows = (
            bound_term(self.schedule, x_start, x_t, t, p),
            (p.pred_x_start - x_start).square().flatten(1).mean(1),
            (epsilon - noise).square().flatten(1).mean(1),
        )
        return torch.stack(rows).double().cpu().numpy()
