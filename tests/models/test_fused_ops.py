"""The UNet with fused ops and with their references in their stead: the same output, by law 4."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdiff.models import UNet, blocks
from fastdiff.ops import _library, use_reference
from tests.judge import assert_close_by_law4

from .unets import ADM, CIFAR10, randomised

ADM_LIKE = ADM | {
    "sample_size": 32,
    "block_out_channels": (64, 128, 128),
    "attention_head_dim": 32,
    "attn_norm_num_groups": 32,
    "norm_num_groups": 32,
}


def by_references(unet: UNet, x: Tensor, *rest: Any) -> Tensor:
    """A copy of the UNet, in the dtype of x, with each op turned to its reference."""
    with use_reference():
        return copy.deepcopy(unet).to(x.dtype)(x, *rest)


def calls() -> tuple[int, int]:
    return (
        _library.composite_calls("attention_block", "CPU"),
        _library.native_calls("group_norm_silu", "CPU"),
    )


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("config", [CIFAR10, ADM_LIKE], ids=["cifar10", "adm"])
@torch.no_grad()
def test_fused_ops_and_references_agree(
    config: dict[str, Any], dtype: torch.dtype, memory_format: torch.memory_format
) -> None:  # fmt: skip
    unet = randomised(UNet(**config)).to(dtype, memory_format=memory_format)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, 3, 32, 32, generator=generator).to(dtype, memory_format=memory_format)
    rest = (torch.tensor([500]), None if unet.class_embedding is None else torch.tensor([3]))
    before = calls()
    y = unet(x, *rest)
    attentions = sum(isinstance(module, blocks.Attention) for module in unet.modules())
    attention_calls, norm_calls = (now - then for now, then in zip(calls(), before, strict=True))
    assert attention_calls == attentions > 4
    assert norm_calls > 40 or _library.native_path() is None
    before = calls()
    assert_close_by_law4(y, lambda x: by_references(unet, x, *rest), x)
    assert calls() == before
