"""torch.func and forward-mode differentiation see through the ops: they take the references."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jvp, vmap

from fastdiff.engine import accelerate
from fastdiff.models import UNet
from fastdiff.ops import (
    attention_block,
    conv1x1,
    conv3x3,
    denoise_step,
    group_norm_silu,
    q_sample,
    self_attention,
    strided_conv3x3,
)
from fastdiff.ops.denoise_step import COLUMNS as STEP_COLUMNS
from fastdiff.ops.join_channels import join_channels
from fastdiff.ops.q_sample import COLUMNS as NOISING_COLUMNS
from fastdiff.samplers import sample
from fastdiff.schedules import NoiseSchedule
from tests.models.unets import SMALL, randomised

Function = Callable[[Tensor], Tensor]
FORMATS = [torch.contiguous_format, torch.channels_last]


def normals(*shape: int, seed: int = 0) -> Tensor:
    """NumPy's: vmap refuses torch's random numbers."""
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def like(p: Tensor, x: Tensor) -> Tensor:
    return p.to(x.dtype)


def norm(x: Tensor) -> Tensor:
    weight, bias, scale, shift = (like(normals(*s, seed=1), x) for s in [(8,)] * 2 + [(2, 8)] * 2)
    return group_norm_silu(
        x, 4, weight, bias, 1e-5, scale=scale[: len(x)], shift=shift[: len(x)], residual=x.square()
    )


def attention(x: Tensor) -> Tensor:
    weights = (like(normals(*s, seed=2) / 3, x) for s in [(8,), (8,), (24, 8), (24,), (8, 8), (8,)])
    return attention_block(x, *weights, groups=4, group_norm_eps=1e-5, heads=2)


def step(x: Tensor) -> Tensor:
    table = normals(5, len(STEP_COLUMNS), seed=3).abs()
    at = torch.arange(2)[: len(x)]
    return denoise_step(x, x.sin(), at, table, noise=x.cos())[0]


def noising(x: Tensor) -> Tensor:
    table = normals(5, len(NOISING_COLUMNS), seed=3)
    return q_sample(x, torch.arange(2)[: len(x)], table, noise=x.cos()).x_t


def convolution(op: Callable[..., Tensor], size: int) -> Function:
    weight, bias = normals(32, 8, size, size, seed=4), normals(32)
    return lambda x: op(x, like(weight, x), like(bias, x))


SEEN_BY_ALL: dict[str, Function] = {
    "group_norm_silu": norm,
    "attention_block": attention,
    "denoise_step": step,
    "q_sample": noising,
}
CHANNELS_LAST: dict[str, Function] = {  # within vmap PyTorch refuses their memory format
    "conv1x1": convolution(conv1x1, 1),
    "conv3x3": convolution(conv3x3, 3),
    "strided_conv3x3": convolution(strided_conv3x3, 3),
    "self_attention": lambda x: self_attention(torch.cat((x, x.sin(), x.cos()), dim=1), 2),
    "join_channels": lambda x: join_channels(x, x.sin()),
}


def image(memory_format: torch.memory_format = torch.contiguous_format) -> Tensor:
    return normals(2, 8, 4, 4, seed=5).float().contiguous(memory_format=memory_format)


def difference_quotient(f: Function, x: Tensor, direction: Tensor) -> Tensor:
    """In float64, by values alone."""
    x, h = x.double(), 1e-5 * direction.double()
    with torch.no_grad():
        return (f(x + h) - f(x - h)) / 2e-5


def assert_close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual.double(), expected.double(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("name", SEEN_BY_ALL | CHANNELS_LAST)
def test_forward_mode(name: str, memory_format: torch.memory_format) -> None:
    f, x = (SEEN_BY_ALL | CHANNELS_LAST)[name], image(memory_format)
    direction = normals(*x.shape, seed=6).float()
    expected = difference_quotient(f, x, direction)
    assert expected.abs().max() > 0.1
    assert_close(jvp(f, (x,), (direction,))[1], expected)
    for recorded in (False, True):
        with torch.set_grad_enabled(recorded), forward_ad.dual_level():
            dual = forward_ad.make_dual(x, direction.contiguous(memory_format=memory_format))
            assert_close(forward_ad.unpack_dual(f(dual)).tangent, expected)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("name", SEEN_BY_ALL)
def test_a_batch_of_calls_is_each_call(name: str, memory_format: torch.memory_format) -> None:
    f, x = SEEN_BY_ALL[name], image(memory_format)
    single = [f(sample[None])[0] for sample in x]
    assert_close(vmap(lambda sample: f(sample[None])[0])(x), torch.stack(single))
    apart = x.movedim(0, 3).contiguous().movedim(3, 0)
    assert_close(vmap(lambda sample: f(sample[None])[0])(apart), torch.stack(single))


@pytest.mark.parametrize("name", SEEN_BY_ALL)
def test_gradients_by_sample(name: str) -> None:
    f, x, seed = SEEN_BY_ALL[name], image(), normals(1, 8, 4, 4, seed=6).float()
    found = vmap(grad(lambda sample: (f(sample[None]) * seed).sum()))(x)
    direction = normals(*x.shape, seed=7).float()
    for i in range(2):
        expected = difference_quotient(f, x[i : i + 1], direction[i : i + 1])
        assert_close((found[i] * direction[i]).sum(), (expected * seed).sum())


def unet() -> UNet:
    return randomised(UNet(**SMALL))


def test_forward_mode_through_a_unet_is_its_gradient() -> None:
    model, t = unet(), torch.tensor([3, 7])
    size = model.config.sample_size
    x, direction, seed = (normals(2, 3, size, size, seed=i).float() for i in range(3))
    _, tangent = jvp(lambda x: model(x, t), (x,), (direction,))
    leaf = x.requires_grad_()
    (backward,) = torch.autograd.grad(model(leaf, t), leaf, seed)
    torch.testing.assert_close(
        (tangent * seed).sum(), (backward * direction).sum(), rtol=1e-3, atol=0
    )


@pytest.mark.parametrize("sampler", ["ddim", "dpm++"])
def test_forward_mode_through_a_whole_run(sampler: str) -> None:
    models = [model := unet(), copy.deepcopy(model).double()]
    size = models[0].config.sample_size
    x, direction = (normals(2, 3, size, size, seed=i) for i in range(2))

    def run(model: UNet, x: Tensor) -> Tensor:
        return sample(
            model, x.shape, schedule=NoiseSchedule.linear(1000), sampler=sampler, steps=4,
            noise=x, clip=False,
        )  # fmt: skip

    expected = difference_quotient(lambda x: run(models[1], x), x, direction)
    for model in models:
        given = [tensor.to(model.dtype) for tensor in (x, direction)]
        _, tangent = jvp(lambda x, model=model: run(model, x), (given[0],), (given[1],))
        assert (tangent - expected).norm() <= 1e-3 * expected.norm()


@pytest.mark.parametrize("memory_format", FORMATS)
def test_gradients_of_a_unets_weights_by_sample(memory_format: torch.memory_format) -> None:
    model, t = unet(), torch.tensor([3, 7])
    size = model.config.sample_size
    x = normals(2, 3, size, size).float().contiguous(memory_format=memory_format)

    def loss(weights: dict[str, Any], x: Tensor, t: Tensor) -> Tensor:
        return functional_call(model, weights, (x[None], t[None])).square().mean()

    weights = dict(model.named_parameters())
    found = vmap(grad(loss), (None, 0, 0))(weights, x, t)
    for i in range(2):
        expected = torch.autograd.grad(loss(weights, x[i], t[i]), list(weights.values()))
        for name, gradient in zip(weights, expected, strict=True):
            assert (found[name][i] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-7, name


def test_within_torch_compile() -> None:
    x, direction = image(), normals(2, 8, 4, 4, seed=6).float()
    by_sample = vmap(grad(lambda sample: norm(sample[None]).sum()))
    assert_close(torch.compile(by_sample, backend="aot_eager")(x), by_sample(x))
    compiled = torch.compile(norm, backend="aot_eager")
    compiled(x)  # and once more, where the derivative is asked for
    assert_close(jvp(compiled, (x,), (direction,))[1], difference_quotient(norm, x, direction))


@pytest.mark.parametrize("recorded", [True, False])
def test_a_plan_refuses_them(recorded: bool) -> None:
    model: nn.Module = accelerate(unet())
    size = SMALL["sample_size"]
    x, t = normals(2, 3, size, size).float(), torch.tensor([3, 7])
    with torch.set_grad_enabled(recorded), pytest.raises(RuntimeError, match=r"torch\.func"):
        jvp(lambda x: model(x, t), (x,), (x,))
    with torch.set_grad_enabled(recorded), pytest.raises(RuntimeError, match=r"torch\.func"):
        vmap(lambda x, t: model(x[None], t[None]))(x, t)
