"""Laws 5 and 6 of the op library: a fallback is told of, a missing gradient is refused."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from fastdiff.ops import _library, use_reference


@pytest.fixture(scope="module")
def double() -> Iterator[Callable[[Tensor], Tensor]]:
    """A throw-away op without a backward; the doctor must not list it afterwards."""
    schema = "test_double(Tensor x) -> Tensor"
    yield _library.define(schema, reference=lambda x: 2 * x, fake=torch.empty_like)
    del _library._ops["test_double"]


def test_an_op_without_backward_refuses_gradients(double: Callable[[Tensor], Tensor]) -> None:
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


def test_use_reference_turns_named_ops_to_their_references(
    double: Callable[[Tensor], Tensor],
) -> None:
    """The throw-away op has no backward, its reference has: so the gradient tells who served."""
    x = torch.ones(3, requires_grad=True)
    with use_reference("test_double"):
        assert torch.equal(torch.autograd.grad(double(x).sum(), x)[0], torch.full((3,), 2.0))
        with use_reference():  # all of them
            double(x).sum().backward()
        double(x).sum().backward()
    for other in (use_reference("group_norm_silu"), contextlib.nullcontext()):
        with other, pytest.raises(NotImplementedError):
            double(x).sum().backward()


def test_use_reference_ends_with_an_error(double: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(ZeroDivisionError), use_reference():
        raise ZeroDivisionError
    with pytest.raises(NotImplementedError):
        double(torch.ones(3, requires_grad=True)).sum().backward()
    with pytest.raises(ValueError, match=r"no op 'group_norm'; there are .*group_norm_silu, "):
        use_reference("group_norm").__enter__()


def test_use_reference_holds_while_anybody_asks(double: Callable[[Tensor], Tensor]) -> None:
    """As in two threads, the first of which is done before the second."""
    x = torch.ones(3, requires_grad=True)
    first, second = use_reference("test_double"), use_reference("test_double")
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    double(x).sum().backward()
    second.__exit__(None, None, None)
    assert not _library.reference_asked()
    with pytest.raises(NotImplementedError):
        double(x).sum().backward()


def test_use_reference_reaches_compiled_code(double: Callable[[Tensor], Tensor]) -> None:
    compiled = torch.compile(lambda x: double(x) + 1, fullgraph=True, backend="aot_eager")
    x = torch.ones(3, requires_grad=True)
    with torch.no_grad():
        assert torch.equal(compiled(x), torch.full((3,), 3.0))
    with use_reference("test_double"):
        compiled(x).sum().backward()
    assert torch.equal(x.grad, torch.full((3,), 2.0))


def test_an_op_that_no_library_defines_has_no_kernel() -> None:
    assert not _library.native_kernel("no_such_op", "CUDA")
