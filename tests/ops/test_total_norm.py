"""total_norm: the norm of many tensors as if they were one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastdiff.ops import _library, total_norm
from fastdiff.ops.total_norm import reference
from tests.judge import assert_close_by_law4
from tests.threads import on_threads

from .test_group_norm_silu import NATIVE, randn

OP = torch.ops.fastdiff.total_norm.default


def judge(*tensors: Tensor) -> None:
    before = _library.native_calls("total_norm", "CPU")
    norm = total_norm(tensors)
    assert _library.native_calls("total_norm", "CPU") == before + NATIVE
    assert_close_by_law4(norm, lambda *given: reference.total_norm(given), *tensors)


@pytest.mark.parametrize("magnitude", [1e-12, 1.0, 1e12])
def test_kernel_by_law4(magnitude: float) -> None:
    conv = randn(64, 48, 3, 3).to(memory_format=torch.channels_last)
    judge(*(magnitude * t for t in (conv, randn(300, 200, seed=1), randn(7, seed=2), randn())))


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 200_000), min_size=1, max_size=6).filter(any),
    threads=st.sampled_from([1, 2, 5]),
)
def test_any_shape_by_law4(sizes: list[int], threads: int) -> None:
    with on_threads(threads):
        judge(*(randn(size, seed=i) for i, size in enumerate(sizes)))


def test_ten_million_small_ones() -> None:
    """Where one sum in float32 would stop growing."""
    norm = total_norm([torch.full((5_000_000,), 1e-3)] * 2)
    if NATIVE:
        torch.testing.assert_close(norm, torch.tensor(10.0).sqrt(), rtol=1e-7, atol=0)


def test_bits_do_not_depend_on_threads() -> None:
    tensors, norms = [randn(300_001), randn(77, seed=1)], set()
    for count in (1, 2, 5):
        with on_threads(count):
            norms.add(float(total_norm(tensors)))
    assert len(norms) == 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_seen(bad: float) -> None:
    tensors = [randn(300), randn(300, seed=1)]
    tensors[1][299] = bad
    torch.testing.assert_close(
        total_norm(tensors), torch.tensor(abs(bad)), rtol=0, atol=0, equal_nan=True
    )


def test_other_dtypes_and_gaps_go_to_the_reference() -> None:
    calls = _library.native_calls("total_norm", "CPU")
    for x in (randn(30, 4).double(), randn(30, 4).bfloat16(), randn(30, 8)[:, ::2]):
        norm = total_norm([x])
        assert norm.dtype == x.dtype
        torch.testing.assert_close(norm.double(), x.double().norm(), rtol=1e-2, atol=0)
    assert _library.native_calls("total_norm", "CPU") == calls


@pytest.mark.parametrize("tensors", [[], [torch.zeros(0)]])
def test_nothing_has_the_norm_0(tensors: list[Tensor]) -> None:
    assert float(total_norm(tensors)) == 0


def test_opcheck_and_no_gradient() -> None:
    tensors = [randn(5, 3), randn(4)]
    torch.library.opcheck(OP, (tensors,), test_utils=("test_schema", "test_faketensor"))
    with pytest.raises(NotImplementedError, match="total_norm has no gradient"):
        total_norm([t.requires_grad_() for t in tensors]).backward()
