"""Laws 5 and 6 of the op library: a fallback is told of, a missing gradient is refused."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from fastdiff.ops import _library


@pytest.fixture
def double() -> Iterator[torch._ops.OpOverload]:
    """A throw-away op without a backward; the doctor must not list it afterwards."""
    schema = "test_double(Tensor x) -> Tensor"
    yield _library.define(schema, reference=lambda x: 2 * x, fake=torch.empty_like)
    del _library._ops["test_double"]


def test_an_op_without_backward_refuses_gradients(double: torch._ops.OpOverload) -> None:
    x = torch.ones(3, requires_grad=True)
    with torch.no_grad():
        assert torch.equal(double(x), 2 * x)
    y: Tensor = double(x)
    with pytest.raises(NotImplementedError, match="fastdiff::test_double has no gradient"):
        y.sum().backward()


def test_a_missing_cuda_kernel_warns_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTDIFF_STRICT", raising=False)
    _library._warn_once.cache_clear()
    with pytest.warns(RuntimeWarning, match="fastdiff::some_op runs its PyTorch reference"):
        _library._miss_cuda_kernel("some_op")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _library._miss_cuda_kernel("some_op")


def test_strict_raises_for_a_missing_cuda_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTDIFF_STRICT", "1")
    with pytest.raises(RuntimeError, match="fastdiff doctor"):
        _library._miss_cuda_kernel("some_op")
