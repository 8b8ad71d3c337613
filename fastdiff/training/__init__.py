"""Training of DDPM models."""

from fastdiff.training.config import TrainConfig
from fastdiff.training.data import ImageData, load_images
from fastdiff.training.trainer import Progress, Trainer

__all__ = ["ImageData", "Progress", "TrainConfig", "Trainer", "load_images"]
