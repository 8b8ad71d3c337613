"""fastdiff's ops: each a reference in PyTorch, with native kernels where they are installed."""

from ._library import use_reference
from .adamw import adamw_
from .attention_block import attention_block, attention_block_folded, fold_single_head
from .biased_sum import biased_sum_
from .conv1x1 import conv1x1, pack_conv1x1
from .conv3x3 import conv3x3, pack_conv3x3, trained_conv3x3
from .denoise_step import denoise_step
from .group_norm_silu import group_norm_silu
from .philox_normal import philox_normal
from .q_sample import q_sample
from .self_attention import self_attention
from .strided_conv3x3 import pack_strided_conv3x3, strided_conv3x3
from .total_norm import total_norm

__all__ = [
    "adamw_",
    "attention_block",
    "attention_block_folded",
    "biased_sum_",
    "conv1x1",
    "conv3x3",
    "denoise_step",
    "fold_single_head",
    "group_norm_silu",
    "pack_conv1x1",
    "pack_conv3x3",
    "pack_strided_conv3x3",
    "philox_normal",
    "q_sample",
    "self_attention",
    "strided_conv3x3",
    "total_norm",
    "trained_conv3x3",
    "use_reference",
]
