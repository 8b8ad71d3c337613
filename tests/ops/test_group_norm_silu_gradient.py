"""group_norm_silu_gradient: of everything that group_norm_silu takes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastdiff.ops import _library, group_norm_silu, use_reference
from fastdiff.ops.group_norm_silu.reference import per_channel
from tests.judge import assert_close_by_law4
from tests.threads import on_threads

from .test_group_norm_silu import LOW, NATIVE, Case, cases, randn
from .test_group_norm_silu_residual import FORMATS, KINDS, residual_of

OP = torch.ops.fastdiff.group_norm_silu_gradient.default


@contextlib.contextmanager
def native_kernel_serves(calls: int = 1) -> Iterator[None]:
    """Fails where the reference answered in the kernel's place; a build without one has none."""
    before = _library.native_calls("group_norm_silu_gradient", "CPU")
    yield
    served = _library.native_calls("group_norm_silu_gradient", "CPU") - before
    assert served == (calls if NATIVE else 0)


def gradients(f: Callable[..., Tensor], seed: Tensor, *inputs: Tensor | None) -> list[Any]:
    """Of every input that is there, contiguous."""
    leaves = [None if i is None else i.detach().requires_grad_() for i in inputs]
    y = f(*leaves)
    there = [leaf for leaf in leaves if leaf is not None]
    found = iter([g.contiguous() for g in torch.autograd.grad(y, there, seed.to(y))])
    return [None if leaf is None else next(found) for leaf in leaves]


# ---- against plain PyTorch ----


@pytest.mark.parametrize("kind", [None, *KINDS])
@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize(
    ("shape", "groups"), [((3, 64, 13, 11), 8), ((1, 128, 32, 32), 32), ((8, 99, 8, 8), 11)]
)
def test_kernel_by_law4(
    shape: tuple[int, ...],
    groups: int,
    memory_format: torch.memory_format,
    dtype: torch.dtype,
    kind: str | None,
) -> None:
    x = randn(*shape, dtype=dtype).contiguous(memory_format=memory_format)
    vectors = [(shape[1],), (shape[1],), shape[:2], shape[:2]]
    parameters = [randn(*s, dtype=dtype, seed=i + 1) for i, s in enumerate(vectors)]
    inputs = (x, *parameters, *([] if kind is None else [residual_of(kind, x)]))
    seed = randn(*shape, dtype=dtype, seed=9)

    def eager(
        x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor, *r: Tensor
    ) -> Tensor:
        h = x if not r else x + (r[0] if r[0].shape == x.shape else per_channel(r[0], x))
        normal = F.group_norm(h.contiguous(), groups, weight, bias, 1e-5)
        return F.silu(normal * (1 + per_channel(scale, x)) + per_channel(shift, x))

    def fused(
        x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor, *r: Tensor
    ) -> Tensor:
        residual = r[0] if r else None
        return group_norm_silu(
            x, groups, weight, bias, 1e-5, scale=scale, shift=shift, residual=residual
        )

    with native_kernel_serves():
        found = gradients(fused, seed, *inputs)
    for index, actual in enumerate(found):
        assert_close_by_law4(actual, lambda *i, k=index: gradients(eager, seed, *i)[k], *inputs)


@settings(max_examples=200, deadline=None)
@given(case=cases(), threads=st.sampled_from([1, 2, 7]))
def test_any_shape_within_its_condition(case: Case, threads: int) -> None:
    """A sum may err by some units of the sum of its terms' magnitudes, whatever it comes to."""
    x, given_to = case.x, (case.x, *case.parameters, case.residual)
    seed = randn(*x.shape, dtype=x.dtype, seed=9)

    def fused(x: Tensor, *p: Tensor | None) -> Tensor:
        return group_norm_silu(
            x, case.groups, p[0], p[1], 1e-3, scale=p[2], shift=p[3], silu=case.silu, residual=p[4]
        )

    with on_threads(threads), native_kernel_serves():
        found = gradients(fused, seed, *given_to)
    expected, magnitude = by_formula(seed, case)
    for got, exact, terms, leaf in zip(found, expected, magnitude, given_to, strict=True):
        if leaf is None:
            continue
        assert got.dtype == leaf.dtype and got.shape == leaf.shape
        own = torch.finfo(leaf.dtype).eps * exact.abs()
        units = torch.finfo(x.dtype if leaf.shape == x.shape else torch.float32).eps
        assert ((got.double() - exact).abs() <= 16 * units * terms + own).all()


def by_formula(grad: Tensor, case: Case) -> tuple[list[Tensor], list[Tensor]]:
    """Every gradient in float64, and the sum of the magnitudes of what it is made of."""
    x, groups, residual = case.x, case.groups, case.residual
    weight, bias, scale, shift = case.parameters
    N, C = x.shape[:2]

    def wide(p: Tensor | None, absent: float) -> Tensor:
        p = torch.full((1, C), absent) if p is None else p
        return per_channel(p.double().reshape(-1, C), x)

    def mean(a: Tensor) -> Tensor:
        return a.reshape(N, groups, -1).mean(2).repeat_interleave(C // groups, 1)

    w, b, m, s = wide(weight, 1), wide(bias, 0), 1 + wide(scale, 0), wide(shift, 0)
    h = x.double()
    if residual is not None:
        h = h + (residual.double() if residual.shape == x.shape else wide(residual, 0))
    center = per_channel(mean(h), x)
    rstd = per_channel((mean((h - center).square()) + 1e-3).rsqrt(), x)
    normal = (h - center) * rstd
    affine = normal * w + b
    z = affine * m + s
    slope = torch.ones_like(z)
    if case.silu:
        slope = z.sigmoid() * (1 + z * (1 - z.sigmoid()))
    dz = grad.double() * slope
    near = normal.abs() + (center * rstd).abs()  # the mean is kept in float32
    rough = grad.double().abs() * (1 + near * (w * m).abs() + (b * m).abs() + s.abs())

    def made(dz: Tensor, normal: Tensor, affine: Tensor, sign: int, w: Tensor, m: Tensor) -> Any:
        spatial = tuple(range(2, x.dim()))
        along = dz * w * m
        of_h = along + sign * (
            per_channel(mean(along), x) + normal * per_channel(mean(along * normal), x)
        )
        of_h = of_h * rstd

        def total(a: Tensor) -> Tensor:
            a = a.expand_as(x)
            return a.sum(spatial) if spatial else a

        of_residual = None
        if residual is not None:
            of_residual = of_h if residual.shape == x.shape else total(of_h)
        return [
            of_h, total(dz * m * normal).sum(0), total(dz * m).sum(0), total(dz * affine),
            total(dz), of_residual,
        ]  # fmt: skip

    magnitude = made(rough, near, near * w.abs() + b.abs(), 1, w.abs(), m.abs())
    return made(dz, normal, affine, -1, w, m), magnitude


@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("present", [(1, 1, 1, 1), (0, 0, 0, 0), (1, 0, 1, 0), (0, 1, 0, 1)])
@pytest.mark.parametrize("spatial", [(2, 2), ()])
def test_by_finite_differences(
    spatial: tuple[int, ...], present: tuple[int, ...], silu: bool
) -> None:
    x = randn(2, 6, *spatial).double().requires_grad_()
    shapes = [(6,), (6,), (2, 6), (2, 6)]
    parameters = [
        randn(*shape, seed=i + 1).double().requires_grad_() if there else None
        for i, (shape, there) in enumerate(zip(shapes, present, strict=True))
    ]

    def op(x: Tensor, *p: Tensor | None) -> Tensor:
        return group_norm_silu(x, 2, p[0], p[1], 1e-3, scale=p[2], shift=p[3], silu=silu)

    assert torch.autograd.gradcheck(op, (x, *parameters))


@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spatial", [(2, 3), ()])
def test_of_a_residual_by_finite_differences(
    spatial: tuple[int, ...], kind: str, silu: bool
) -> None:
    x = randn(2, 6, *spatial).double()
    inputs = (x, residual_of(kind, x), randn(6).double(), randn(2, 6, seed=2).double())
    leaves = [i.requires_grad_() for i in inputs]

    def op(x: Tensor, residual: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        return group_norm_silu(x, 2, weight, None, 1e-3, scale=scale, silu=silu, residual=residual)

    assert torch.autograd.gradcheck(op, leaves)
    alone = leaves[1].detach().requires_grad_()
    y = op(x.detach(), alone, *(i.detach() for i in leaves[2:]))
    grad = torch.autograd.grad(y.square().sum(), alone)
    expected = torch.autograd.grad(op(*leaves).square().sum(), leaves[1])
    torch.testing.assert_close(grad, expected)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_of_the_parameters_alone(memory_format: torch.memory_format) -> None:
    x = randn(2, 24, 4, 5).contiguous(memory_format=memory_format)
    weight, bias = randn(24, seed=1).requires_grad_(), randn(24, seed=2).requires_grad_()
    found = torch.autograd.grad(
        group_norm_silu(x, 8, weight, bias, 1e-5).square().sum(), (weight, bias)
    )
    # Eager PyTorch 2.13 itself crashes on the channels-last one.
    expected = F.silu(F.group_norm(x.contiguous(), 8, weight, bias, 1e-5)).square().sum()
    torch.testing.assert_close(found, torch.autograd.grad(expected, (weight, bias)))


@pytest.mark.parametrize("stride", [1, 8, 64, 1000])
@pytest.mark.parametrize("shape", [(1, 8, 6, 5), (2, 8, 1, 5), (1, 8, 1, 5)])
def test_whatever_the_stride_of_a_dimension_of_one(shape: tuple[int, ...], stride: int) -> None:
    """torch leaves them arbitrary, as after x[:1] or x[0].unsqueeze(0)."""
    x = randn(*shape).contiguous(memory_format=torch.channels_last)
    strides = [stride if size == 1 else s for size, s in zip(shape, x.stride(), strict=True)]
    x = x.as_strided(shape, strides).requires_grad_()
    weight, bias, seed = randn(8, seed=1), randn(8, seed=2), randn(*shape, seed=3)
    leaves = (x, weight.requires_grad_(), bias.requires_grad_())
    found = torch.autograd.grad(group_norm_silu(x, 4, weight, bias, 1e-6), leaves, seed)
    wide = [leaf.detach().contiguous().double().requires_grad_() for leaf in leaves]
    expected = torch.autograd.grad(
        F.silu(F.group_norm(wide[0], 4, *wide[1:], 1e-6)), wide, seed.double()
    )
    for got, exact in zip(found, expected, strict=True):
        torch.testing.assert_close(got.double(), exact, rtol=1e-4, atol=1e-5)


def test_second_gradient_is_refused() -> None:
    x = randn(1, 4, 3, 3).requires_grad_()
    (grad,) = torch.autograd.grad(
        group_norm_silu(x, 2, None, None, 1e-5).sum(), x, create_graph=True
    )
    with pytest.raises(RuntimeError, match="group_norm_silu_gradient has no gradient"):
        torch.autograd.grad(grad.sum(), x)


def inputs_of_op(
    memory_format: torch.memory_format = torch.channels_last,
    dtype: torch.dtype = torch.float32,
    N: int = 3,
    side: int = 20,
    kind: str = "by channel",
) -> list[Any]:
    """What OP takes, of 64 channels in 8 groups."""
    x = randn(N, 64, side, side, dtype=dtype).contiguous(memory_format=memory_format)
    weight, bias, scale = randn(64, seed=1), randn(64, seed=2), randn(N, 64, seed=3)
    residual = residual_of(kind, x)
    forward = torch.ops.fastdiff.group_norm_silu.default
    _, mean, rstd = forward(x, 8, weight, bias, 1e-5, scale, None, True, residual)
    return [
        randn(*x.shape, dtype=dtype, seed=4), x, 8, weight, bias, scale, None, True, residual, mean,
        rstd,
    ]  # fmt: skip


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
def test_bits_depend_neither_on_threads_nor_on_layout_of_grad_nor_on_batch(
    kind: str, memory_format: torch.memory_format
) -> None:
    grad, x, *rest = inputs_of_op(memory_format, kind=kind)
    results = []
    for count in (1, 2, 5):
        with on_threads(count):
            results += [OP(grad.contiguous(memory_format=layout), x, *rest) for layout in FORMATS]
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))
    assert results[0][0].stride() == x.stride()
    groups, weight, bias, scale, shift, silu, residual, mean, rstd = rest
    for i in range(3):
        one = slice(i, i + 1)
        alone = OP(
            grad[one], x[one], groups, weight, bias, scale[one], shift, silu, residual[one],
            mean[one], rstd[one],
        )  # fmt: skip
        for k in (0, 3, 4, 5):
            assert torch.equal(alone[k], results[0][k][one])


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("where", ["x", "grad"])
def test_nan_spoils_its_group_alone(where: str, memory_format: torch.memory_format) -> None:
    x = randn(2, 16, 5, 5).contiguous(memory_format=memory_format)
    grad = randn(2, 16, 5, 5, seed=1)
    (x if where == "x" else grad)[1, 6, 2, 3] = float("nan")
    leaf = x.requires_grad_()
    y = group_norm_silu(leaf, 4, None, None, 1e-6)
    (found,) = torch.autograd.grad(y, leaf, grad)
    assert found[1, 4:8].isnan().all() and found.isnan().sum() == 4 * 25


@pytest.mark.parametrize("shift", [-1e4, -200.0, -95.0, -88.5, 80.0, 200.0])
@pytest.mark.parametrize("memory_format", FORMATS)
def test_the_tails_of_silu(memory_format: torch.memory_format, shift: float) -> None:
    """0 from far below, and from far above what the identity has."""
    x = randn(1, 16, 6, 6).contiguous(memory_format=memory_format)
    offset = torch.full((1, 16), shift)
    leaves = (x.requires_grad_(), offset.requires_grad_())
    y = group_norm_silu(x, 4, None, None, 1e-6, shift=offset)
    found = torch.autograd.grad(y, leaves, torch.ones_like(y))
    slope = 0.0 if shift < 0 else 1.0
    torch.testing.assert_close(found[1], torch.full((1, 16), slope * 36), rtol=1e-6, atol=1e-30)
    torch.testing.assert_close(found[0], torch.zeros_like(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("memory_format", FORMATS)
def test_opcheck(memory_format: torch.memory_format, dtype: torch.dtype, kind: str) -> None:
    torch.library.opcheck(OP, inputs_of_op(memory_format, dtype, 2, 5, kind))


def test_what_the_kernel_does_not_cover_goes_to_the_reference() -> None:
    grad, *rest = inputs_of_op(side=5)
    with native_kernel_serves(calls=0):
        OP(grad.double(), *rest)
        OP(grad[:0], *(r[:0] if isinstance(r, Tensor) and r.dim() > 1 else r for r in rest))
        with use_reference("group_norm_silu_gradient"):
            x = rest[0].requires_grad_()
            group_norm_silu(x, 8, None, None, 1e-5).sum().backward()
    assert x.grad is not None
