"""Networks that turn images into the features by which sets of images are compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastdiff.checkpoints import Pretrained

# What torch-fidelity itself would fetch.
INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION}"
BATCH = 64


@dataclass(frozen=True)
class Features:
    """Of N images: vectors [N, D] float32, and a classifier's logits [N, K] where it has some."""

    vectors: Tensor
    logits: Tensor | None = None


@dataclass(frozen=True)
class FeatureNet:
    """A network by name: images [B, C, H, W] uint8 -> Features."""

    name: str
    call: Callable[[Tensor], Features]

    @torch.no_grad()
    def __call__(
        self, images: Tensor, show: Callable[[int, int], object] | None = None
    ) -> Features:
        """Of all images [N, C, H, W] uint8, on the CPU; `show(done, total)` is told of batches."""
        parts = []
        for start in range(0, len(images), BATCH):
            parts.append(self.call(images[start : start + BATCH]))
            if show is not None:
                show(min(start + BATCH, len(images)), len(images))
        logits = [part.logits.float().cpu() for part in parts if part.logits is not None]
        vectors = torch.cat([part.vectors.float().cpu() for part in parts])
        return Features(vectors, torch.cat(logits) if logits else None)


def inception_net(
    weights: str | Path | None = None, device: torch.device | str = "cpu"
) -> FeatureNet:
    """The Inception-v3 of FID, IS and KID as published, by torch-fidelity.

    Args:
        weights: torch-fidelity's file of them; None looks where torch.hub keeps downloads. Nothing
            is fetched.

    Raises:
        ValueError: there is no such file, or it is another one.
        ImportError: torch-fidelity is not installed.
    """
    path = _inception_file(weights)
    require_torch_fidelity()
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    net: Any = FeatureExtractorInceptionV3(
        "inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(path)
    ).to(device)

    def call(images: Tensor) -> Features:
        colour = images if images.shape[1] == 3 else images.expand(-1, 3, -1, -1)
        return Features(*net(colour.to(device)))

    return FeatureNet("Inception-v3", call)


def unet_net(pretrained: Pretrained, name: str) -> FeatureNet:
    """The channels of a UNet's lowest resolution, averaged over pixels, for an image without noise
    at t = 0. With classes it is told of no class, or of class 0 if it knows no such label.

    Weights are read without running code, so any model folder will do; figures of different nets
    cannot be compared.

    Raises ValueError for a UNet without a middle block.
    """
    unet = pretrained.unet.eval()
    middle = unet.mid_block
    if middle is None:
        raise ValueError(f"{name} has no middle block to take features from; name another model.")

    def call(images: Tensor) -> Features:
        x = (images.to(unet.device).float() / 127.5 - 1).to(unet.dtype)
        labels = None
        if unet.config.takes_classes:
            labels = torch.full((len(x),), pretrained.no_class_label or 0, device=x.device)
        seen: list[Tensor] = []
        handle = middle.register_forward_hook(lambda *made: seen.append(made[2]))
        try:
            unet(x, 0, labels)
        finally:
            handle.remove()
        return Features(seen[0].float().mean((2, 3)))

    return FeatureNet(name, call)


def require_torch_fidelity() -> None:
    """Raise ImportError, with what to install, where torch-fidelity does not import."""
    try:
        import torch_fidelity  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"FID, IS and KID need torch-fidelity ({error}): pip install 'fastdiff[evaluate]'"
        ) from error


def _inception_file(weights: str | Path | None) -> Path:
    path = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION if weights is None else weights
    path = Path(path)
    if not path.is_file():
        raise ValueError(
            f"FID, IS and KID need the Inception weights, and there is no {path}; fetch "
            f"{INCEPTION_URL} to there, or take --features with a model's folder."
        )
    try:
        # torch-fidelity would run what a pickle asks for; this refuses all but tensors.
        torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"{path} is no file of weights ({reason}); fetch {INCEPTION_URL} anew."
        ) from error
    return path
