"""biased_sum_: the sum in float64, one rounding, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastdiff.ops import biased_sum_

OP = torch.ops.fastdiff.biased_sum_.default


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_it_is_the_exact_sum_rounded(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, residual = torch.randn(2, 2, 3, 4, 5).to(dtype)
    bias = torch.randn(3)
    exact = (x.double() + bias.double().view(3, 1, 1) + residual.double()) * 0.5
    address = x.data_ptr()
    assert biased_sum_(x, bias, residual, 0.5).data_ptr() == address
    unit = torch.finfo(dtype).eps / 2 if dtype != torch.float32 else 2**-22
    assert bool(((x.double() - exact).abs() <= unit * exact.abs() + 2**-22).all())


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"x": torch.zeros(3)}, ValueError, r"shape \[3\]"),
        ({"x": torch.zeros(2, 3, dtype=torch.int64)}, TypeError, "int64"),
        ({"bias": torch.zeros(4)}, ValueError, r"bias has shape \[4\]; give \[3\]"),
        ({"bias": torch.zeros(3, dtype=torch.int64)}, TypeError, "bias is torch.int64"),
        ({"residual": torch.zeros(2, 4)}, ValueError, r"residual has shape \[2, 4\]"),
        ({"residual": torch.zeros(2, 3).bfloat16()}, TypeError, "bfloat16 and x torch.float32"),
        ({"residual": torch.zeros(2, 3, device="meta")}, ValueError, "on meta and x on cpu"),
        ({"x": torch.zeros(2, 3, requires_grad=True)}, NotImplementedError, "no gradient"),
    ],
)
def test_what_does_not_fit_is_told(changed: dict[str, Any], error: type, words: str) -> None:
    arguments = {"x": torch.zeros(2, 3), "bias": torch.zeros(3), "residual": torch.zeros(2, 3)}
    with pytest.raises(error, match=words):
        biased_sum_(**(arguments | changed))


def test_opcheck() -> None:
    x = torch.randn(2, 3, 4, 5)
    torch.library.opcheck(OP, (x, torch.randn(3), x.clone(), 0.5))
    torch.library.opcheck(OP, (x, None, None, 1.0))
