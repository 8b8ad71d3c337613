from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastdiff.ops import _library, group_norm_silu
from fastdiff.ops.group_norm_silu import reference
from tests.judge import assert_close_by_law4

OP = torch.ops.fastdiff.group_norm_silu.default
NATIVE = _library.native_path() is not None
LOW = [torch.float32, torch.bfloat16, torch.float16]


@contextlib.contextmanager
def native_kernel_serves(calls: int = 1) -> Iterator[None]:
    """Fails where the reference answered in the kernel's place; a build without one has none."""
    assert _library.native_kernel("group_norm_silu", "CPU") == NATIVE
    before = _library.native_calls("group_norm_silu", "CPU")
    yield
    assert _library.native_calls("group_norm_silu", "CPU") == before + (calls if NATIVE else 0)


def plain(*args: object) -> Tensor:
    return reference.group_norm_silu(*args)[0]


def judge(
    x: Tensor,
    groups: int = 4,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    silu: bool = True,
    residual: Tensor | None = None,
    calls: int = 1,
) -> None:
    with native_kernel_serves(calls):
        y = group_norm_silu(
            x, groups, weight, bias, 1e-6, scale=scale, shift=shift, silu=silu, residual=residual
        )
    assert_close_by_law4(y, plain, x, groups, weight, bias, 1e-6, scale, shift, silu, residual)


def randn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def test_reference_is_the_formula() -> None:
    x, weight, bias = (
        randn(2, 6, 5, 3, dtype=torch.float64),
        randn(6, seed=1).double(),
        randn(6, seed=2).double(),
    )
    scale, shift = randn(2, 6, seed=3).double(), randn(2, 6, seed=4).double()
    grouped = x.numpy().reshape(2, 3, -1)
    mean, variance = grouped.mean(-1, keepdims=True), grouped.var(-1, keepdims=True)
    normal = ((grouped - mean) / np.sqrt(variance + 1e-3)).reshape(2, 6, -1)
    z = normal * weight.numpy()[:, None] + bias.numpy()[:, None]
    z = z * (1 + scale.numpy()[..., None]) + shift.numpy()[..., None]
    expected = (z / (1 + np.exp(-z))).reshape(x.shape)
    y, mean_out, rstd_out = reference.group_norm_silu(
        x, 3, weight, bias, 1e-3, scale, shift, silu=True
    )
    np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(mean_out, mean[..., 0], rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(rstd_out, 1 / np.sqrt(variance + 1e-3)[..., 0], rtol=1e-12)


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    ("shape", "groups"),
    [
        ((1, 128, 32, 32), 32),
        ((8, 64, 8, 8), 32),
        ((3, 20, 7, 5), 4),
        ((2, 9, 1, 1), 3),
        ((1, 1, 3, 3), 1),
        ((2, 192, 13, 11), 32),
    ],
)
def test_kernel_by_law4(
    shape: tuple[int, ...], groups: int, channels_last: bool, dtype: torch.dtype
) -> None:
    C = shape[1]
    x = randn(*shape, dtype=dtype)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    weight, bias = randn(C, dtype=dtype, seed=1), randn(C, dtype=dtype, seed=2)
    judge(x, groups, weight, bias)
    judge(x, groups, weight, bias, silu=False)


@dataclass(frozen=True)
class Case:
    """What group_norm_silu may be given: weight, bias, scale and shift are the parameters."""

    x: Tensor
    groups: int
    parameters: list[Tensor | None]
    silu: bool
    residual: Tensor | None


@st.composite
def cases(draw: st.DrawFn) -> Case:
    batch, groups = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    C = groups * draw(st.integers(1, 20))
    spatial = draw(st.lists(st.integers(1, 9), max_size=3))
    dtype, parameter_dtype = draw(st.sampled_from(LOW)), draw(st.sampled_from(LOW))
    offset, seed = draw(st.sampled_from([0.0, -3.0, 100.0])), draw(st.integers(0, 1000))
    x = (randn(batch, C, *spatial, seed=seed) + offset).to(dtype)
    if draw(st.booleans()) and x.dim() in (4, 5):
        formats = {4: torch.channels_last, 5: torch.channels_last_3d}
        x = x.to(memory_format=formats[x.dim()])
    parameters = [
        randn(*shape, dtype=parameter_dtype, seed=seed + 1 + i) if draw(st.booleans()) else None
        for i, shape in enumerate([(C,), (C,), (batch, C), (batch, C)])
    ]
    residual = None
    kind = draw(st.sampled_from([None, "by channel", "as x"]))
    if kind == "as x":
        residual = randn(*x.shape, dtype=dtype, seed=seed + 5)
    elif kind == "by channel":
        residual = randn(batch, C, dtype=parameter_dtype if spatial else dtype, seed=seed + 5) * 3
    return Case(x, groups, parameters, draw(st.booleans()), residual)


@settings(max_examples=150, deadline=None)
@given(case=cases())
def test_any_shape_by_law4(case: Case) -> None:
    judge(case.x, case.groups, *case.parameters, silu=case.silu, residual=case.residual)


@pytest.mark.parametrize("dtype", LOW)
def test_adagn_reads_strided_halves_of_a_chunk(dtype: torch.dtype) -> None:
    x = randn(3, 32, 6, 6, dtype=dtype)
    scale, shift = randn(3, 64, dtype=dtype, seed=1).chunk(2, dim=1)
    assert not scale.is_contiguous()
    judge(x, 8, randn(32, seed=2), randn(32, seed=3), scale, shift)
    every_other = randn(3, 64, dtype=dtype, seed=4)[:, ::2]
    judge(x, 8, None, randn(64, seed=5)[::2], every_other, shift)


@pytest.mark.parametrize("view", ["cropped", "transposed", "every other channel", "expanded"])
def test_strided_input(view: str) -> None:
    x = {
        "cropped": randn(2, 16, 9, 9)[:, :, 1:8, 2:7],
        "transposed": randn(2, 16, 5, 9).transpose(2, 3),
        "every other channel": randn(2, 32, 5, 5).to(memory_format=torch.channels_last)[:, ::2],
        "expanded": randn(1, 16, 5, 5).expand(3, 16, 5, 5),
    }[view]
    judge(x)
    assert group_norm_silu(x, 4, None, None, 1e-6).is_contiguous()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_small_spread_about_a_large_offset(memory_format: torch.memory_format) -> None:
    x = (randn(2, 32, 16, 16) * 0.1 + 1e4).contiguous(memory_format=memory_format)
    judge(x, 8)
    if NATIVE:
        y = group_norm_silu(x, 8, None, None, 1e-6, silu=False)
        truth = F.group_norm(x.double().contiguous(), 8, eps=1e-6)
        torch.testing.assert_close(y.double(), truth, rtol=1e-5, atol=1e-5)


def test_a_constant_group_gives_the_bias() -> None:
    bias = randn(8)
    y = group_norm_silu(torch.full((1, 8, 5, 5), 12345.678), 2, None, bias, 1e-6, silu=False)
    torch.testing.assert_close(y, bias[:, None, None].expand(1, 8, 5, 5), rtol=0, atol=0)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_inf_spoil_their_group_alone(
    bad: float, dtype: torch.dtype, memory_format: torch.memory_format
) -> None:
    x = randn(2, 16, 5, 5, dtype=dtype).contiguous(memory_format=memory_format)
    x[1, 6, 2, 3] = bad
    judge(x)
    y = group_norm_silu(x, 4, None, None, 1e-6)
    assert y[1, 4:8].isnan().all() and y.isnan().sum() == 4 * 25


def test_extreme_activations() -> None:
    """SiLU's tails: 0 from far below, the identity from far above, and float16's overflow."""
    shift = torch.tensor([[-1e4, -200.0, -95.0, -88.5, -80.0, 0.0, 80.0, 200.0]])
    x = randn(1, 8, 4, 4)
    judge(x, 2, shift=shift)
    judge(x.half(), 2, shift=shift * 400)
    judge(x, 2, shift=torch.tensor([[float("inf"), float("nan"), 0, 0, 0, 0, 0, 0]]))


@pytest.mark.parametrize("shape", [(0, 8, 4, 4), (2, 8, 0, 4)])
def test_empty(shape: tuple[int, ...]) -> None:
    y = group_norm_silu(torch.empty(shape), 4, None, None, 1e-6)
    assert y.shape == shape
    x = torch.empty(shape, requires_grad=True)
    group_norm_silu(x, 4, None, None, 1e-6).sum().backward()
    assert x.grad is not None and x.grad.shape == shape


def test_float64_goes_to_the_reference() -> None:
    x = randn(2, 8, 4, 4).double()
    with native_kernel_serves(calls=0):
        y = group_norm_silu(x, 4, None, None, 1e-6)
    torch.testing.assert_close(y, F.silu(F.group_norm(x, 4, eps=1e-6)), rtol=0, atol=1e-14)


def test_bits_do_not_depend_on_threads_or_batch() -> None:
    threads = torch.get_num_threads()
    try:
        for memory_format in (torch.contiguous_format, torch.channels_last):
            x = randn(3, 64, 40, 40).contiguous(memory_format=memory_format)
            results = []
            for count in (1, 2, 5):
                torch.set_num_threads(count)
                results.append(group_norm_silu(x, 8, None, None, 1e-6))
            alone = torch.cat(
                [group_norm_silu(x[i : i + 1], 8, None, None, 1e-6) for i in range(3)]
            )
            assert all(torch.equal(r, alone) for r in results)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_opcheck(memory_format: torch.memory_format, dtype: torch.dtype) -> None:
    x = randn(2, 8, 5, 3, dtype=dtype).contiguous(memory_format=memory_format).requires_grad_()
    weight = randn(8, dtype=dtype).requires_grad_()
    scale, shift = randn(2, 16, dtype=dtype).chunk(2, dim=1)
    torch.library.opcheck(OP, (x, 4, weight, None, 1e-5, scale, shift, True, None))
    torch.library.opcheck(OP, (x.detach()[:, :, 1:], 4, None, None, 1e-5, None, None, False, None))


def test_compiles_whole() -> None:
    x = randn(2, 8, 5, 3).requires_grad_()
    scale, shift = randn(2, 16).chunk(2, dim=1)

    def block(x: Tensor) -> Tensor:
        return group_norm_silu(x * 2, 4, None, None, 1e-5, scale=scale, shift=shift) + 1

    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), block(x), rtol=0, atol=0)
    (expected,) = torch.autograd.grad(block(x).sum(), x)
    torch.testing.assert_close(torch.autograd.grad(compiled(x).sum(), x)[0], expected)


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        ({"x": torch.zeros(4)}, ValueError, r"x has shape \[4\].*\[N, C"),
        ({"x": torch.zeros(2, 8, 4, dtype=torch.int64)}, TypeError, "x is torch.int64"),
        ({"groups": 3}, ValueError, "groups is 3, which does not divide the 8 channels"),
        ({"groups": 0}, ValueError, "groups is 0"),
        ({"weight": torch.zeros(7)}, ValueError, r"weight has shape \[7\].*give \[8\]"),
        ({"bias": torch.zeros(8, dtype=torch.int32)}, TypeError, "bias is torch.int32"),
        ({"scale": torch.zeros(8)}, ValueError, r"scale has shape \[8\].*give \[2, 8\]"),
        ({"shift": torch.zeros(2, 8, device="meta")}, ValueError, "shift is on meta and x on cpu"),
    ],
)
def test_bad_input(change: dict[str, object], error: type[Exception], sentence: str) -> None:
    arguments = {"x": torch.zeros(2, 8, 4), "groups": 4, "weight": None, "bias": None}
    arguments |= {"group_norm_eps": 1e-6} | change
    with pytest.raises(error, match=sentence):
        group_norm_silu(**arguments)  # type: ignore[arg-type]
