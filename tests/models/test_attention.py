"""The attention block's weights lie joined, and joined or not the block uses those it has."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdiff.models import UNet
from fastdiff.models.blocks import Attention
from fastdiff.models.config import UNetConfig
from fastdiff.models.joined import join
from fastdiff.ops import _library
from fastdiff.ops.attention_block import reference
from tests.judge import assert_close_by_law4

from .unets import SMALL, distance, randomised

CHANNELS = 24


def attention(seed: int = 0) -> Attention:
    torch.manual_seed(seed)
    return Attention(UNetConfig.from_dict({**SMALL}), CHANNELS, 8, residual_scale=0.5)


def by_reference(block: Attention, x: Tensor) -> Tensor:
    """From each parameter by its name."""
    qkv = [block.to_q, block.to_k, block.to_v]
    return reference.attention_block(
        x,
        block.group_norm.weight,
        block.group_norm.bias,
        torch.cat([layer.weight for layer in qkv]),
        torch.cat([layer.bias for layer in qkv]),
        block.to_out[0].weight,
        block.to_out[0].bias,
        8,
        block.group_norm.eps,
        block.heads,
        block.residual_scale,
    )


def images(dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(2, CHANNELS, 4, 5, generator=generator, dtype=dtype)
    return x.to(memory_format=torch.channels_last)


def lies_joined(block: Attention) -> bool:
    """Whether inference joins the weights without a copy."""
    with torch.no_grad():
        return all(
            join(block._qkv(kind), laid_out) is laid_out.whole
            for kind, laid_out in block._joined.items()
        )


def step(block: Attention) -> Attention:
    optimizer = torch.optim.AdamW(block.parameters(), lr=0.1)
    block(images()).square().sum().backward()
    optimizer.step()
    return block


def loaded(block: Attention, *, assign: bool) -> Attention:
    block.load_state_dict(attention(seed=1).state_dict(), assign=assign)
    return block


def saved(block: Attention) -> Attention:
    file = io.BytesIO()
    torch.save(block, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def decay(block: Attention) -> Attention:
    for parameter in block.parameters():  # past the version counter, as many an average does
        parameter.data.mul_(0.9)
    return block


def replace(block: Attention) -> Attention:
    block.to_k.weight = torch.nn.Parameter(torch.randn(CHANNELS, CHANNELS))
    return block


CHANGES: dict[str, Callable[[Attention], Attention]] = {
    "optimizer step": step,
    "weights loaded": lambda block: loaded(block, assign=False),
    "weights assigned": lambda block: loaded(block, assign=True),
    "copied": copy.deepcopy,
    "pickled": lambda block: pickle.loads(pickle.dumps(block)),
    "saved": saved,
    "to float64 and back": lambda block: block.double().float(),
    "shared": lambda block: block.share_memory(),
    "decayed in place": decay,
    "one weight replaced": replace,
}


@pytest.mark.parametrize("name", CHANGES)
def test_new_weights_are_seen(name: str) -> None:
    block, x = attention(), images()
    with torch.no_grad():
        assert lies_joined(block)
        before = block(x)
    block = CHANGES[name](block)
    with torch.no_grad():
        after = block(x)
        assert distance(after, by_reference(block, x)) < 1e-6
        assert lies_joined(block) == (name != "one weight replaced")
    if name not in ("copied", "pickled", "saved", "to float64 and back", "shared"):
        assert distance(after, before) > 1e-3


def test_memory_stays_shared() -> None:
    block = attention().share_memory()
    assert all(parameter.is_shared() for parameter in block.parameters())


def test_parameters_bear_diffusers_names_and_their_gradients() -> None:
    block, x = attention().double(), images(torch.float64)
    block(x).square().sum().backward()
    gradients = {name: p.grad.clone() for name, p in block.named_parameters()}
    parts = ("group_norm", "to_q", "to_k", "to_v", "to_out.0")
    assert gradients.keys() == {f"{part}.{kind}" for part in parts for kind in ("weight", "bias")}
    assert block.state_dict().keys() == gradients.keys()
    block.zero_grad()
    by_reference(block, x).square().sum().backward()
    for name, parameter in block.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_the_op(dtype: torch.dtype) -> None:
    block, x = attention().to(dtype), images(dtype)
    calls = _library.composite_calls("attention_block", "CPU")
    with torch.no_grad():
        y = block(x)
        assert _library.composite_calls("attention_block", "CPU") == calls + 1
        assert_close_by_law4(y, lambda x: by_reference(copy.deepcopy(block).to(x.dtype), x), x)


def test_autocast_keeps_the_dtype_of_the_residual() -> None:
    block, x = attention(), images(torch.bfloat16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        y = block(x)
    assert y.dtype == torch.bfloat16
    with torch.no_grad():
        assert torch.equal(y, block.bfloat16()(x))


@pytest.mark.parametrize("config", [SMALL])
def test_a_unet_made_without_values_and_filled_is_joined(config: dict[str, Any]) -> None:
    source = randomised(UNet(**config))
    with torch.device("meta"):
        unet = UNet(**config)
    unet.load_state_dict(source.state_dict(), assign=True)
    blocks = [module for module in unet.modules() if isinstance(module, Attention)]
    assert blocks and all(lies_joined(block) for block in blocks)
