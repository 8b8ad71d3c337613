"""What group_norm_silu adds before its statistics: a bias by sample and channel, or a tensor."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastdiff.ops import _library, group_norm_silu, use_reference

from .test_group_norm_silu import LOW, OP, judge, native_kernel_serves, randn

FORMATS = [torch.contiguous_format, torch.channels_last]
KINDS = ["by channel", "as x"]


def residual_of(kind: str, x: Tensor, dtype: torch.dtype | None = None, seed: int = 7) -> Tensor:
    shape = x.shape if kind == "as x" else x.shape[:2]
    return randn(*shape, dtype=dtype or x.dtype, seed=seed)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize(
    ("shape", "groups"), [((2, 64, 16, 16), 32), ((3, 20, 7, 5), 4), ((1, 192, 33, 3), 32)]
)
def test_kernel_by_law4(
    shape: tuple[int, ...], groups: int, memory_format: torch.memory_format, dtype: torch.dtype,
    kind: str,
) -> None:  # fmt: skip
    x = randn(*shape, dtype=dtype).contiguous(memory_format=memory_format)
    weight, bias = randn(shape[1], seed=1), randn(shape[1], seed=2)
    judge(x, groups, weight, bias, residual=residual_of(kind, x))
    judge(x, groups, weight, bias, silu=False, residual=residual_of(kind, x))


@pytest.mark.parametrize("memory_format", FORMATS)
def test_it_is_the_sum_of_plain_pytorch(memory_format: torch.memory_format) -> None:
    x = randn(2, 16, 6, 5).contiguous(memory_format=memory_format)
    time = randn(2, 16, seed=1)
    expected = F.silu(F.group_norm((x + time[:, :, None, None]).double(), 4, eps=1e-6))
    for residual in (time, time[:, :, None, None].expand(2, 16, 6, 5)):
        y = group_norm_silu(x, 4, None, None, 1e-6, residual=residual)
        torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("memory_format", FORMATS)
def test_views_are_read_where_they_lie(memory_format: torch.memory_format) -> None:
    x = randn(3, 32, 6, 5).contiguous(memory_format=memory_format)
    half, every_other = randn(3, 64).chunk(2, dim=1)[1], randn(3, 64, seed=1)[:, ::2]
    for view in (half, every_other, randn(1, 32).expand(3, 32), randn(3, 1).expand(3, 32)):
        judge(x, 8, residual=view)
    other = FORMATS[memory_format == torch.contiguous_format]
    judge(x, 8, residual=randn(3, 32, 6, 5, seed=2).contiguous(memory_format=other))
    judge(x, 8, residual=randn(3, 32, 5, 6, seed=3).transpose(2, 3))
    judge(x[:, :, 1:], 8, residual=randn(3, 32, 7, 5, seed=4)[:, :, 2:])


@pytest.mark.parametrize("dtype", LOW)
def test_without_positions_the_residual_is_as_x(dtype: torch.dtype) -> None:
    x = randn(3, 32, dtype=dtype)
    judge(x, 4, residual=randn(3, 32, dtype=dtype, seed=1))
    with pytest.raises(TypeError, match=r"residual is torch\.float64 and x "):
        group_norm_silu(x, 4, None, None, 1e-6, residual=randn(3, 32).double())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("memory_format", FORMATS)
def test_a_sum_that_cancels_or_grows_by_a_large_offset(
    memory_format: torch.memory_format, kind: str
) -> None:
    noise = (randn(2, 32, 16, 16) * 0.1).contiguous(memory_format=memory_format)
    offset = torch.full_like(noise if kind == "as x" else noise[..., 0, 0], 1e4)
    judge(noise, 8, residual=offset)
    judge(noise + 1e4, 8, residual=-offset)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_inf_spoil_their_group_alone(
    bad: float, memory_format: torch.memory_format, kind: str
) -> None:
    x = randn(2, 16, 5, 5).contiguous(memory_format=memory_format)
    residual = residual_of(kind, x)
    residual[1, 6] = bad
    judge(x, residual=residual)
    y = group_norm_silu(x, 4, None, None, 1e-6, residual=residual)
    assert y[1, 4:8].isnan().all() and y.isnan().sum() == 4 * 25


@pytest.mark.parametrize("memory_format", FORMATS)
def test_perturbing_each_input_changes_the_output(memory_format: torch.memory_format) -> None:
    x = randn(2, 16, 5, 5).contiguous(memory_format=memory_format)
    vectors = {name: randn(2, 16, seed=i) for i, name in enumerate(["scale", "shift"])}
    inputs = {"x": x, "weight": randn(16, seed=3), "bias": randn(16, seed=4)} | vectors

    def run(**given: Tensor) -> Tensor:
        return group_norm_silu(groups=4, group_norm_eps=1e-6, **given)

    for kind in KINDS:
        given = inputs | {"residual": residual_of(kind, x)}
        with native_kernel_serves(calls=1 + len(given)):
            y = run(**given)
            for name, p in given.items():
                perturbed = p.clone()
                perturbed[-1] += 0.01 * randn(*p[-1].shape, seed=9)
                assert not torch.equal(run(**given | {name: perturbed}), y), name


def test_bits_do_not_depend_on_threads_or_batch() -> None:
    threads = torch.get_num_threads()
    try:
        for memory_format in FORMATS:
            x = randn(3, 64, 20, 20).contiguous(memory_format=memory_format)
            for residual in (residual_of(kind, x) for kind in KINDS):
                results = []
                for count in (1, 2, 5):
                    torch.set_num_threads(count)
                    results.append(group_norm_silu(x, 8, None, None, 1e-6, residual=residual))
                alone = [
                    group_norm_silu(x[i : i + 1], 8, None, None, 1e-6, residual=residual[i : i + 1])
                    for i in range(3)
                ]
                assert all(torch.equal(r, torch.cat(alone)) for r in results)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("memory_format", FORMATS)
def test_opcheck(memory_format: torch.memory_format, dtype: torch.dtype, kind: str) -> None:
    x = randn(2, 8, 5, 3, dtype=dtype).contiguous(memory_format=memory_format)
    residual = residual_of(kind, x).requires_grad_()
    torch.library.opcheck(OP, (x, 4, None, None, 1e-5, None, None, True, residual))
    x.requires_grad_()
    torch.library.opcheck(OP, (x, 4, None, None, 1e-5, None, None, False, residual))


@pytest.mark.parametrize("kind", KINDS)
def test_compiles_whole(kind: str) -> None:
    x = randn(2, 8, 5, 3).requires_grad_()
    residual = residual_of(kind, x).requires_grad_()

    def block(x: Tensor, residual: Tensor) -> Tensor:
        return group_norm_silu(x * 2, 4, None, None, 1e-5, residual=residual * 2) + 1

    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, residual), block(x, residual), rtol=0, atol=0)
    expected = torch.autograd.grad(block(x, residual).sum(), (x, residual))
    actual = torch.autograd.grad(compiled(x, residual).sum(), (x, residual))
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize(
    ("residual", "error", "sentence"),
    [
        (torch.zeros(8), ValueError, r"shape \[8\]; .* give \[2, 8\] or \[2, 8, 4\]$"),
        (torch.zeros(2, 8, 1), ValueError, r"residual has shape \[2, 8, 1\]"),
        (torch.zeros(2, 8, dtype=torch.int32), TypeError, "residual is torch.int32"),
        (torch.zeros(2, 8, 4).half(), TypeError, "residual is torch.float16 and x torch.float32"),
        (torch.zeros(2, 8, device="meta"), ValueError, "residual is on meta and x on cpu"),
    ],
)
def test_bad_residual(residual: Tensor, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        group_norm_silu(torch.zeros(2, 8, 4), 4, None, None, 1e-6, residual=residual)


def test_the_switch_to_the_reference() -> None:
    x, residual = randn(2, 8, 5, 5), randn(2, 8, seed=1)
    calls = _library.native_calls("group_norm_silu", "CPU")
    fused = group_norm_silu(x, 4, None, None, 1e-6, residual=residual)
    with use_reference("group_norm_silu"), native_kernel_serves(calls=0):
        plain = group_norm_silu(x, 4, None, None, 1e-6, residual=residual)
    assert _library.native_calls("group_norm_silu", "CPU") == calls + (
        _library.native_path() is not None
    )
    torch.testing.assert_close(fused, plain)
