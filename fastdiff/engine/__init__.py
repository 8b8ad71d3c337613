"""The engine: a UNet's forward planned once, with packed weights, and then replayed."""

from fastdiff.engine.accelerating import accelerate, planned
from fastdiff.engine.graphs import Graph
from fastdiff.engine.time import Ahead
from fastdiff.engine.unet import AcceleratedUNet

__all__ = ["AcceleratedUNet", "Ahead", "Graph", "accelerate", "planned"]
