"""How good samples are: distances between sets of images, and a report of them."""

from fastdiff.evaluation.comparison import Comparison, compare
from fastdiff.evaluation.features import FeatureNet, Features, inception_net, unet_net

__all__ = ["Comparison", "FeatureNet", "Features", "compare", "inception_net", "unet_net"]
