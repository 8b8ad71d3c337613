"""A trained model together with what one needs to know to sample from it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastdiff.diffusion import Clip
from fastdiff.engine import planned
from fastdiff.likelihood import (
    BitsPerDim,
    FlowBitsPerDim,
    bits_per_dim,
    ode_bits_per_dim,
)
from fastdiff.models.unet import UNet
from fastdiff.samplers import sample
from fastdiff.schedules import NoiseSchedule

STEPS = 50


@dataclass(frozen=True)
class Pretrained:
    """A UNet and all one needs to know to sample from it.

    `prediction_type`, `variance_type` and `clip` are what `fastdiff.sample` takes; `class_names`
    are the names of the labels 0, 1, ... where the checkpoint gives them. `timestep_scale` is what
    the UNet was trained to see t multiplied by: 1000 / T under guided-diffusion's
    rescale_timesteps. `no_class_label` is the last label of the UNet's table where that was trained
    to mean no class, for classifier-free guidance.

    Raises ValueError for a no_class_label that is not the last.
    """

    unet: UNet
    schedule: NoiseSchedule
    prediction_type: str = "epsilon"
    variance_type: str = "fixed_small"
    clip: Clip = True
    class_names: tuple[str, ...] | None = None
    timestep_scale: float = 1.0
    no_class_label: int | None = None

    def __post_init__(self) -> None:
        labels = self.unet.num_classes
        if self.no_class_label is not None and (not labels or self.no_class_label != labels - 1):
            raise ValueError(
                f"no_class_label is {self.no_class_label}; it has to be the last of the UNet's "
                f"{labels or 0} labels."
            )

    @property
    def num_classes(self) -> int | None:
        """How many classes the UNet was trained with; None for an unconditional one."""
        labels = self.unet.num_classes
        return labels if labels is None or self.no_class_label is None else labels - 1

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image; ValueError where the config does not say."""
        size = self.unet.config.sample_size
        if size is None:
            raise ValueError(
                "The UNet's config has no sample_size; give the image's size yourself: "
                "image_size to fastdiff.load."
            )
        height, width = (size, size) if isinstance(size, int) else size
        return self.unet.config.in_channels, height, width

    @property
    def model(self) -> Callable[..., Tensor]:
        """What samplers call as model(x_t, t): the UNet, on the timesteps it was trained with;
        its plan where there is one, with its weights as they are now."""
        return self.model_for(tf32=False)

    def model_for(self, *, tf32: bool) -> Callable[..., Tensor]:
        """As model; with tf32 a GPU multiplies float32 with 10 bits of mantissa."""
        model: Callable[..., Tensor]
        model = planned(self.unet, tf32=tf32, timestep_scale=self.timestep_scale)
        return self._unplanned if model is self.unet else model

    def fingerprint(self) -> str:
        """A hash of the weights and of all that is told beside them: other images, another hash."""
        told = (self.prediction_type, self.variance_type, self.clip)
        labels = (self.timestep_scale, self.no_class_label)
        digest = hashlib.sha256(repr((told, labels, self.unet.config)).encode())
        digest.update(self.schedule.betas.tobytes())
        for name, tensor in sorted(self.unet.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    def to(self, *args: Any, **kwargs: Any) -> Pretrained:
        """Move or convert the UNet in place, as torch.nn.Module.to does."""
        self.unet.to(*args, **kwargs)
        return self

    def sample(
        self,
        n: int,
        *,
        sampler: str = "ddim",
        steps: int | str | None = None,
        seed: int = 0,
        class_labels: Tensor | None = None,
        uncond_labels: Tensor | None = None,
        guidance_scale: float = 1.0,
        sample_index: int = 0,
        batch_size: int = 64,
        **rest: Any,
    ) -> Tensor:
        """Draw n images, [n, C, H, W] float32 in [-1, 1], on the UNet's device.

        Image i depends on the seed and on i, not on n; see fastdiff.sample, which also says what
        `rest` may be and what is raised.

        Args:
            sampler: "ddim", "ddpm" or "dpm++".
            steps: None is 50, or every timestep for ddpm.
            class_labels: [n] int64; None takes each class in turn.
            uncond_labels: [n] int64, what guidance takes for no class; None: no_class_label.
            guidance_scale: above 1, classifier-free guidance.
            sample_index: of the first image; image i is number sample_index + i of the seed.
            batch_size: images at once.
        """
        if class_labels is None and self.num_classes is not None:
            class_labels = torch.arange(n) % self.num_classes
        given = self.told
        if steps is None and sampler != "ddpm":
            steps = min(STEPS, self.schedule.num_timesteps)
        given |= {"sampler": sampler, "steps": steps, "seed": seed, **rest}
        given["guidance_scale"] = guidance_scale
        if uncond_labels is None:
            uncond_labels = self.uncond_labels(n, guidance_scale)
        model, batches = self.model, []
        for first in range(0, max(n, 1), batch_size):
            index = torch.arange(first, min(first + batch_size, n))
            batches.append(
                sample(
                    model,
                    (len(index), *self.sample_shape),
                    sample_index=sample_index + index,
                    class_labels=None if class_labels is None else class_labels[index],
                    uncond_labels=None if uncond_labels is None else uncond_labels[index],
                    **given,
                )
            )
        return torch.cat(batches)

    def bits_per_dim(
        self, images: Tensor, *, class_labels: Tensor | None = None, **rest: Any
    ) -> BitsPerDim:
        """The variational bound of uint8 images [N, C, H, W].

        `fastdiff.likelihood.bits_per_dim` says what `rest` may be and what is raised.
        """
        return bits_per_dim(self.model, images, class_labels=class_labels, **(self.told | rest))

    def ode_bits_per_dim(
        self, images: Tensor, *, class_labels: Tensor | None = None, **rest: Any
    ) -> FlowBitsPerDim:
        """A second figure for uint8 images [N, C, H, W], by the probability flow.

        `fastdiff.likelihood.ode_bits_per_dim` says what `rest` may be and what is raised.
        """
        # The UNet itself, since a plan gives no gradient.
        return ode_bits_per_dim(
            self._unplanned, images, class_labels=class_labels, **(self.told | rest)
        )

    @property
    def told(self) -> dict[str, Any]:
        """What samplers and likelihoods are told of the model."""
        return {
            "schedule": self.schedule,
            "prediction_type": self.prediction_type,
            "variance_type": self.variance_type,
            "clip": self.clip,
            "device": self.unet.device,
            "dtype": self.unet.dtype,
        }

    @property
    def _unplanned(self) -> Callable[..., Tensor]:
        if self.timestep_scale == 1:
            return self.unet
        return lambda x_t, t, **rest: self.unet(x_t, t * self.timestep_scale, **rest)

    def uncond_labels(self, n: int, guidance_scale: float) -> Tensor | None:
        """[n] int64 of no class for guidance by that scale, None where it is 1.

        Raises ValueError for a model that was trained without a label for no class.
        """
        if guidance_scale == 1:
            return None
        if self.no_class_label is None:
            raise ValueError(
                f"guidance_scale {guidance_scale:g} needs a model with a label for no class; this "
                "one has none: train with label_dropout above 0."
            )
        return torch.full((n,), self.no_class_label)
