"""Training of diffusion models.

Public names load on first use, so that the command line knows the settings without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fastdiff.training.config import TrainConfig

if TYPE_CHECKING:
    from fastdiff.training.data import ImageData as ImageData
    from fastdiff.training.data import load_images as load_images
    from fastdiff.training.trainer import Progress as Progress
    from fastdiff.training.trainer import Trainer as Trainer

_HOME = {
    "ImageData": "fastdiff.training.data",
    "Progress": "fastdiff.training.trainer",
    "Trainer": "fastdiff.training.trainer",
    "load_images": "fastdiff.training.data",
}
__all__ = ["TrainConfig", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'fastdiff.training' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
