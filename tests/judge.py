"""Law 4's judge: a kernel may err at most twice as much as plain PyTorch in the same dtype."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def assert_close_by_law4(actual: Tensor, reference: Callable[..., Tensor], *inputs: Any) -> None:
    """Judge `actual` by `reference(*inputs)` in float64.

    The largest and the root-mean-square error must each be at most twice those of the reference in
    the inputs' own dtype. A reference luckier than one unit in float32's last place, or than one
    rounding to a shorter dtype, counts as if it were that; and since a largest error is one draw of
    luck, a reference that seems twice as good is asked again beside these inputs. Infinities and
    NaN must stand where the truth has them, and strides agree with the reference's on axes longer
    than 1.
    """
    truth = reference(*[_in_float64(i) for i in inputs])
    plain = reference(*inputs)
    assert actual.dtype == plain.dtype and actual.shape == truth.shape
    assert _strides(actual) == _strides(plain), f"{actual.stride()} is not {plain.stride()}"
    finite = truth.isfinite()
    torch.testing.assert_close(
        actual[~finite].double(), truth[~finite], rtol=0, atol=0, equal_nan=True
    )
    if not finite.any():
        return
    rounding = max(torch.finfo(torch.float32).eps, torch.finfo(actual.dtype).eps / 2)
    for measure in (_largest, _root_mean_square):
        error, allowed = (measure((y.double() - truth)[finite]) for y in (actual, plain))
        allowed = 2 * max(allowed, rounding * measure(truth[finite]))
        if error > allowed and measure is _largest:
            allowed = max(allowed, 2 * _largest_nearby(reference, inputs))
        assert error <= allowed, f"{measure.__name__} error {error:.3g} is above {allowed:.3g}"


def _largest_nearby(reference: Callable[..., Tensor], inputs: tuple[Any, ...]) -> Tensor:
    """The reference's largest error for three first inputs that differ from this one by 0.1 %."""
    errors = []
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        x = inputs[0]
        nudge = 1 + 1e-3 * torch.randn(x.shape, generator=generator, dtype=torch.float64)
        near = ((x.double() * nudge.to(x.device)).to(x), *inputs[1:])
        error = reference(*near).double() - reference(*[_in_float64(i) for i in near])
        errors.append(_largest(error[error.isfinite()]))
    return torch.stack(errors).max()


def _strides(y: Tensor) -> list[int]:
    return [stride for stride, size in zip(y.stride(), y.shape, strict=True) if size > 1]


def _in_float64(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _largest(error: Tensor) -> Tensor:
    return error.abs().max()


def _root_mean_square(error: Tensor) -> Tensor:
    return error.square().mean().sqrt()
