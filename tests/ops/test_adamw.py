"""adamw_: a step of AdamW over many tensors, in place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastdiff.ops import _library, adamw_
from fastdiff.ops.adamw import reference
from tests.judge import assert_close_by_law4
from tests.threads import on_threads

from .test_group_norm_silu import NATIVE, randn

OP = torch.ops.fastdiff.adamw_.default
OPTIONS: dict[str, Any] = {
    "learning_rate": 1e-2, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.1
}  # fmt: skip
FORMATS = [torch.contiguous_format, torch.channels_last]


def drawn(shape: Sequence[int], dtype: torch.dtype = torch.float32, seed: int = 0) -> list[Tensor]:
    """A weight, a gradient and its moments, all of magnitudes that training has."""
    weight, gradient, mean, square = (randn(*shape, seed=seed + i) for i in range(4))
    return [t.to(dtype) for t in (weight, gradient, mean * 0.1, square.square() * 0.1)]


def step(tensors: Sequence[Sequence[Tensor]], steps: Sequence[int], **options: Any) -> bool:
    """Whether the kernel served."""
    before = _library.native_calls("adamw_", "CPU")
    columns = [list(column) for column in zip(*tensors, strict=True)]
    adamw_(*columns, steps, **OPTIONS | options)
    return _library.native_calls("adamw_", "CPU") == before + 1


def judge(tensors: Sequence[Sequence[Tensor]], steps: Sequence[int], **options: Any) -> None:
    """Each array by law 4, and that the gradient stays."""
    kept = [[t.clone() for t in row] for row in tensors]
    assert step(tensors, steps, **options) == NATIVE
    given = {"gradient_scale": 1.0} | OPTIONS | options
    beta1, beta2 = given.pop("betas")
    for after, before, count in zip(tensors, kept, steps, strict=True):
        assert torch.equal(after[1], before[1])
        for which in (0, 2, 3):

            def plain(*row: Tensor, which: int = which, count: int = count) -> Tensor:
                row = tuple(t.clone() for t in row)
                columns = [[t] for t in row]
                reference.adamw_(*columns, [count], beta1=beta1, beta2=beta2, **given)
                return row[which]

            assert_close_by_law4(after[which], plain, *before)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("scale", [1.0, 0.37])
def test_kernel_by_law4(memory_format: torch.memory_format, scale: float) -> None:
    shapes = [(64, 48, 3, 3), (300, 200), (129,), (1, 5, 1, 1), (7, 1, 3, 3), ()]
    tensors = [drawn(shape, seed=10 * i) for i, shape in enumerate(shapes)]
    tensors = [
        [t.contiguous(memory_format=memory_format) if t.dim() == 4 else t for t in row]
        for row in tensors
    ]
    judge(tensors, [1, 2, 3, 10, 1000, 10**6], gradient_scale=scale)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(100, 40000), min_size=1, max_size=5),
    at=st.integers(1, 10**5),
    scale=st.floats(1e-3, 1),
    rate=st.floats(1e-6, 1e-1),
    beta1=st.floats(0, 0.99),
    beta2=st.floats(0.5, 0.9999),
    decay=st.floats(0, 0.5),
    threads=st.sampled_from([1, 2, 5]),
)
def test_any_shape_by_law4(
    sizes: list[int],
    at: int,
    scale: float,
    rate: float,
    beta1: float,
    beta2: float,
    decay: float,
    threads: int,
) -> None:
    with on_threads(threads):
        judge(
            [drawn((size,), seed=size) for size in sizes],
            range(at, at + len(sizes)),
            gradient_scale=scale,
            learning_rate=rate,
            betas=(beta1, beta2),
            weight_decay=decay,
        )


def test_many_steps_are_those_of_torch_in_float64() -> None:
    weight, *_ = drawn((40, 30))
    exact = torch.nn.Parameter(weight.double())
    optimizer = torch.optim.AdamW(
        [exact], lr=1e-2, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1, foreach=False
    )
    mean, square = torch.zeros_like(weight), torch.zeros_like(weight)
    for made in range(1, 51):
        gradient = randn(40, 30, seed=100 + made)
        step([(weight, gradient, mean, square)], [made], gradient_scale=0.5)
        exact.grad = 0.5 * gradient.double()
        optimizer.step()
    torch.testing.assert_close(weight.double(), exact.detach(), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("odd", range(4))
def test_layouts_that_differ_are_walked_by_element(odd: int) -> None:
    """torch's fused AdamW walks them by memory on the CPU, and so takes wrong pairs."""
    row = drawn((8, 6, 3, 3))
    expected = [t.clone() for t in row]
    served = step([expected], [4])
    assert served == NATIVE
    row[odd] = row[odd].contiguous(memory_format=torch.channels_last)
    assert not step([row], [4])
    for found, exact in zip(row, expected, strict=True):
        torch.testing.assert_close(found, exact, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_and_gaps_go_to_the_reference(dtype: torch.dtype) -> None:
    assert not step([drawn((9, 5), dtype)], [1])
    gaps = [t[:, ::2] for t in drawn((9, 10))]
    alone = [t.clone(memory_format=torch.contiguous_format) for t in gaps]
    assert not step([gaps], [1])
    step([alone], [1])
    for a, b in zip(gaps, alone, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_bits_do_not_depend_on_threads() -> None:
    results = []
    for count in (1, 2, 5):
        tensors = [drawn((70001,)), drawn((64, 48, 3, 3))]
        with on_threads(count):
            step(tensors, [2, 3])
        results.append([t for row in tensors for t in row])
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def test_nan_and_infinity_stay_where_they_are() -> None:
    row = drawn((40,))
    row[1][3], row[1][17] = float("nan"), float("inf")
    step([row], [1])
    assert row[0].isnan().nonzero().flatten().tolist() == [3, 17]
    assert row[2][17].isinf() and row[2].isnan().sum() == 1


def test_it_writes_in_place_and_says_so() -> None:
    row = drawn((6, 5))
    versions = [t._version for t in row]
    addresses = [t.data_ptr() for t in row]
    step([row], [1])
    assert [t._version - v for t, v in zip(row, versions, strict=True)] == [1, 0, 1, 1]
    assert [t.data_ptr() for t in row] == addresses
    row[0].requires_grad_()
    with pytest.raises(NotImplementedError, match="adamw_ has no gradient"):
        step([row], [2])


def test_nothing_to_do() -> None:
    adamw_([], [], [], [], [], **OPTIONS)
    step([drawn((0,)), drawn((3, 0))], [1, 1])


def test_opcheck() -> None:
    rows = [drawn((6, 5)), drawn((4, 3, 3, 3), seed=5)]
    columns = [list(column) for column in zip(*rows, strict=True)]
    utilities = ("test_schema", "test_faketensor")  # which say all there is without a gradient
    torch.library.opcheck(
        OP, (*columns, [1, 2], 0.5, 1e-2, 0.9, 0.999, 1e-8, 0.1), test_utils=utilities
    )


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"gradients": []}, r"lists of \[0, 1\] entries"),
        ({"steps": [0]}, "a step is 0; the first is 1"),
        ({"means": [torch.zeros(3)]}, r"mean 0 has shape \[3\] and its weight \[2\]"),
    ],
)
def test_bad_input(change: dict[str, Any], sentence: str) -> None:
    names = ("weights", "gradients", "means", "squares")
    arguments: dict[str, Any] = {name: [torch.zeros(2)] for name in names} | {"steps": [1]}
    with pytest.raises(ValueError, match=sentence):
        adamw_(**arguments | change, **OPTIONS)
