"""The engine: a UNet's forward planned once, with packed weights, and then replayed."""

from fastdiff.engine.accelerating import accelerate, planned
from fastdiff.engine.unet import AcceleratedUNet

__all__ = ["AcceleratedUNet", "accelerate", "planned"]
