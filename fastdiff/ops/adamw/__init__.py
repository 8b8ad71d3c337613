"""`adamw_`: a step of AdamW over many tensors, in one pass and in place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .. import _library
from . import reference

__all__ = ["adamw_"]


def adamw_(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    means: Sequence[Tensor],
    squares: Sequence[Tensor],
    steps: Sequence[int],
    *,
    gradient_scale: float = 1.0,
    learning_rate: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """Change weights, and the moments of their gradients, by one step of AdamW.

    Loshchilov and Hutter, "Decoupled Weight Decay Regularization" (2019), algorithm 2, for the
    gradient times `gradient_scale`. The CPU's kernel reads and writes each array once, whatever its
    memory format, where a weight's four arrays have the same; it takes float32.

    Args:
        weights, gradients, means, squares: of a weight each, of one shape, floating point; means
            and squares are the running ones of the gradient. Gradients are left as they are.
        steps: how many steps each weight will have made, from 1.
        betas: what is kept of the mean and of the square, in [0, 1).

    Raises:
        ValueError: a length, a shape or a step does not fit.
        NotImplementedError: a gradient is asked for.
    """
    lengths = {len(weights), len(gradients), len(means), len(squares), len(steps)}
    if len(lengths) > 1:
        raise ValueError(f"lists of {sorted(lengths)} entries; give one entry each for a weight")
    for i, (weight, *others) in enumerate(zip(weights, gradients, means, squares, strict=True)):
        for name, other in zip(("gradient", "mean", "square"), others, strict=True):
            if other.shape != weight.shape:
                raise ValueError(
                    f"{name} {i} has shape {list(other.shape)} and its weight {list(weight.shape)}"
                )
    if min(steps, default=1) < 1:
        raise ValueError(f"a step is {min(steps)}; the first is 1")
    _op(
        weights, gradients, means, squares, steps, gradient_scale, learning_rate, *betas, eps,
        weight_decay,
    )  # fmt: skip


def _fake(*_: Any) -> None:
    return None


_op = _library.define(
    "adamw_(Tensor(a!)[] weights, Tensor[] gradients, Tensor(b!)[] means, Tensor(c!)[] squares, "
    "int[] steps, float gradient_scale, float learning_rate, float beta1, float beta2, float eps, "
    "float weight_decay) -> ()",
    reference=reference.adamw_,
    fake=_fake,
)
