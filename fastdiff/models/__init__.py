"""Networks that predict the noise."""

from fastdiff.models.config import UNetConfig
from fastdiff.models.unet import UNet

__all__ = ["UNet", "UNetConfig"]
