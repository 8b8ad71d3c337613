"""The CUDA kernel of the attention block on a GPU, against the plain formula in float64."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastdiff.ops import _library
from tests.judge import assert_close_by_law4

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]

LOW = [torch.bfloat16, torch.float16]
OP = "attention_block_fused"
EPS, SCALE = 1e-6, 0.7
SHAPES = [  # N, C, (height, width), groups
    (1, 64, (4, 4), 32),
    (3, 64, (5, 4), 4),
    (2, 128, (8, 8), 32),
    (2, 192, (3, 43), 32),
    (70, 256, (4, 4), 32),
    (1, 256, (16, 16), 32),
    (40, 256, (16, 16), 32),
    (150, 256, (16, 16), 32),
    (2, 256, (10, 20), 8),
    (5, 320, (8, 8), 32),
    (300, 256, (8, 8), 0),
    (2, 512, (8, 8), 32),
    (200, 512, (7, 9), 32),
]


def plain(
    x: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    qkv_weight: Tensor,
    qkv_bias: Tensor | None,
    proj_weight: Tensor,
    proj_bias: Tensor | None,
    groups: int,
    eps: float,
    heads: int,
    residual_scale: float,
) -> Tensor:
    N, C = x.shape[:2]
    n = x
    if groups:
        affine = (None if p is None else p.to(x.dtype) for p in (norm_weight, norm_bias))
        n = F.group_norm(x, groups, *affine, eps)
    qkv = F.linear(n.flatten(2).transpose(1, 2), qkv_weight, qkv_bias)
    q, k, v = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part in qkv.chunk(3, 2))
    wide = torch.promote_types(x.dtype, torch.float32)
    scores = q.to(wide) @ k.to(wide).transpose(2, 3) / (C / heads) ** 0.5
    mixed = (scores.softmax(3).to(x.dtype) @ v).transpose(1, 2).reshape(N, -1, C)
    h = F.linear(mixed, proj_weight, proj_bias).transpose(1, 2).reshape(x.shape)
    return ((x + h) * residual_scale).contiguous(memory_format=torch.channels_last)


def inputs(
    N: int, C: int, size: tuple[int, int], dtype: torch.dtype, offset: float = 0.5
) -> list[Tensor]:
    """x and the six parameters; none of them zero."""
    generator = torch.Generator("cuda").manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device="cuda")

    x = (randn(N, C, *size) * 1.5 + offset).to(dtype, memory_format=torch.channels_last)
    norm = [1 + 0.3 * randn(C), 0.3 * randn(C)]
    weights = [1.5 * randn(3 * C, C) / C**0.5, randn(3 * C) / 3, randn(C, C) / C**0.5, randn(C) / 3]
    return [x, *norm, *(w.to(dtype) for w in weights)]


def fused(*args: object) -> Tensor:
    before = _library.native_calls(OP, "CUDA")
    y: Tensor = torch.ops.fastdiff.attention_block_fused(*args)
    assert _library.native_calls(OP, "CUDA") == before + 1
    return y


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize(("N", "C", "size", "groups"), SHAPES)
def test_kernel_by_law4(
    N: int, C: int, size: tuple[int, int], groups: int, dtype: torch.dtype
) -> None:
    args = (*inputs(N, C, size, dtype), groups, EPS, 1, SCALE)
    assert_close_by_law4(fused(*args), plain, *args)


@pytest.mark.parametrize("absent", [(1,), (2,), (1, 2), (4,), (6,), (1, 2, 4, 6)])
def test_parameters_may_be_absent(absent: tuple[int, ...]) -> None:
    tensors: list[Tensor | None] = [*inputs(2, 128, (9, 9), torch.bfloat16)]
    for index in absent:
        tensors[index] = None
    args = (*tensors, 32, EPS, 1, 1.0)
    assert_close_by_law4(fused(*args), plain, *args)


@pytest.mark.parametrize(("dtype", "offset"), [*itertools.product(LOW, [30.0, -300.0])])
def test_common_offset(dtype: torch.dtype, offset: float) -> None:
    args = (*inputs(2, 256, (16, 16), dtype, offset), 32, EPS, 1, 1.0)
    assert_close_by_law4(fused(*args), plain, *args)


@pytest.mark.parametrize("dtype", LOW)
def test_every_input_matters(dtype: torch.dtype) -> None:
    tensors = inputs(2, 64, (8, 8), dtype)
    y = fused(*tensors, 32, EPS, 1, 1.0)
    for index, tensor in enumerate(tensors):
        changed = list(tensors)
        changed[index] = tensor + torch.randn_like(tensor)
        assert not torch.equal(fused(*changed, 32, EPS, 1, 1.0), y), index


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize(("N", "C", "size"), [(2, 64, (5, 5)), (130, 256, (16, 16))])
def test_folded_weights(dtype: torch.dtype, N: int, C: int, size: tuple[int, int]) -> None:
    x, norm_weight, norm_bias, qkv, qkv_bias, proj, proj_bias = inputs(N, C, size, dtype)
    w_q, w_k, w_v = qkv.double().chunk(3)
    b_q, _, b_v = qkv_bias.double().chunk(3)
    score, out = (w_k.t() @ w_q, w_k.t() @ b_q), (proj.double() @ w_v, proj.double() @ b_v)
    folded = [p.to(dtype) for p in (*score, out[0], out[1] + proj_bias.double())]
    y = fused(x, norm_weight, norm_bias, *folded, 32, EPS, 1, SCALE)

    def reference(x: Tensor, *parameters: Tensor) -> Tensor:
        return plain(x, *parameters, 32, EPS, 1, SCALE)

    assert_close_by_law4(y, reference, x, norm_weight, norm_bias, qkv, qkv_bias, proj, proj_bias)


def test_bits_repeat_and_do_not_depend_on_the_batch() -> None:
    x, *parameters = inputs(140, 256, (16, 16), torch.bfloat16)
    y = fused(x, *parameters, 32, EPS, 1, SCALE)
    assert torch.equal(fused(x, *parameters, 32, EPS, 1, SCALE), y)
    assert torch.equal(fused(x[:70], *parameters, 32, EPS, 1, SCALE), y[:70])


def test_replays_from_a_graph() -> None:
    x, *parameters = inputs(4, 256, (8, 8), torch.float16)
    fused(x, *parameters, 32, EPS, 1, SCALE)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = fused(x, *parameters, 32, EPS, 1, SCALE)
    x.copy_(torch.randn_like(x))
    graph.replay()
    assert torch.equal(y, fused(x, *parameters, 32, EPS, 1, SCALE))


def test_nan_stays_in_its_image() -> None:
    x, *parameters = inputs(3, 128, (8, 8), torch.bfloat16)
    whole = fused(x, *parameters, 32, EPS, 1, SCALE)
    x[1, 5, 2, 3] = float("nan")
    y = fused(x, *parameters, 32, EPS, 1, SCALE)
    assert y[1].isnan().all()
    assert torch.equal(y[::2], whole[::2])


def test_empty_batch() -> None:
    x, *parameters = inputs(1, 128, (8, 8), torch.bfloat16)
    y: Tensor = torch.ops.fastdiff.attention_block_fused(x[:0], *parameters, 32, EPS, 1, SCALE)
    assert y.shape == (0, 128, 8, 8)


def test_sizes_that_no_kernel_serves_are_named() -> None:
    x, *parameters = inputs(1, 96, (8, 8), torch.bfloat16)
    with pytest.raises(RuntimeError, match="no kernel serves 64 tokens of 96 channels in 1 heads"):
        torch.ops.fastdiff.attention_block_fused(x, *parameters, 32, EPS, 1, SCALE)
