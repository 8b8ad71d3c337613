"""Reading and writing trained models: diffusers' folder format."""

from fastdiff.checkpoints._reading import CheckpointError
from fastdiff.checkpoints.diffusers import BUNDLED, Pretrained, load, save

__all__ = ["BUNDLED", "CheckpointError", "Pretrained", "load", "save"]
