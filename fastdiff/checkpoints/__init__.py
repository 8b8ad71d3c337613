"""Trained models, read and written: diffusers' folders, and other dialects' files of weights."""

from fastdiff.checkpoints._reading import CheckpointError
from fastdiff.checkpoints.converting import convert
from fastdiff.checkpoints.diffusers import save
from fastdiff.checkpoints.loading import BUNDLED, load
from fastdiff.checkpoints.pretrained import Pretrained

__all__ = ["BUNDLED", "CheckpointError", "Pretrained", "convert", "load", "save"]
