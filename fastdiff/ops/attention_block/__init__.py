"""`attention_block`: group norm, self-attention among pixels, projection and residual sum."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _library
from ..group_norm_silu.reference import memory_format
from . import composite, reference
from .checks import check_parameters, check_x
from .folding import FoldedHead, attention_block_folded, fold_single_head
from .fused import fused_takes, products_are_fast, recorded

__all__ = ["FoldedHead", "attention_block", "attention_block_folded", "fold_single_head"]


def attention_block(
    x: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    qkv_weight: Tensor,
    qkv_bias: Tensor | None,
    proj_weight: Tensor,
    proj_bias: Tensor | None,
    *,
    groups: int | None,
    group_norm_eps: float,
    heads: int,
    residual_scale: float = 1.0,
) -> Tensor:
    """`(x + proj(attention(norm(x)))) * residual_scale`, the attention block of DDPM and ADM.

    Each head takes softmax(q k^T / sqrt(C / heads)) v among the T pixels of a sample (Vaswani et
    al. 2017, eq. 1), of q, k, v = qkv(norm(x)); Ho et al. 2020, appendix B, have one head,
    Dhariwal and Nichol 2021, section 3, heads of 64 channels. Matrix products run in the dtype of
    `x`, under autocast as well; the norm's statistics and the softmax at least in float32.

    Args:
        x: [N, C, *spatial], floating point. The output keeps its dtype, and its memory format where
            that is contiguous or channels-last (the faster); it is contiguous otherwise.
        norm_weight, norm_bias: [C] or None, any floating dtype.
        qkv_weight, qkv_bias: [3C, C], and [3C] or None. Rows of q, then of k, then of v; a head is
            C / heads successive rows of each.
        proj_weight, proj_bias: [C, C], and [C] or None.
        groups: number of groups of the norm, divides C; None or 0 is no norm.
        group_norm_eps: added to the variance.
        heads: number of heads, divides C.
        residual_scale: 1 over diffusers' rescale_output_factor.

    Raises:
        TypeError: a tensor is not of a floating dtype.
        ValueError: a shape, a device, `groups` or `heads` does not fit.
    """
    groups = groups or 0
    check_x(x, groups, heads)
    C = x.shape[1]
    expected = {
        "norm_weight": (norm_weight, (C,)), "norm_bias": (norm_bias, (C,)),
        "qkv_weight": (qkv_weight, (3 * C, C)), "qkv_bias": (qkv_bias, (3 * C,)),
        "proj_weight": (proj_weight, (C, C)), "proj_bias": (proj_bias, (C,)),
    }  # fmt: skip
    check_parameters(expected, "x", x)
    matrices = (qkv_weight, qkv_bias, proj_weight, proj_bias)
    like_x = (p if p is None or p.dtype == x.dtype else p.to(x.dtype) for p in matrices)
    out: Tensor = _op(
        x, norm_weight, norm_bias, *like_x, groups, group_norm_eps, heads, residual_scale
    )
    return out


def _fused_or_composite(x: Tensor, *args: Any) -> Tensor:
    heads = args[8]
    if fused_takes(x, heads) and not recorded(x, *args[:6]):
        with composite.no_autocast(x):
            out: Tensor = torch.ops.fastdiff.attention_block_fused(x, *args)
            return out
    return composite.attention_block(x, *args)


def _worth_keeping(x: Tensor) -> bool:
    """Whether what the composite computes is kept for the gradient: on the CPU, except where a
    backward pass within autocast would take other dtypes than the forward."""
    computed = x.dtype if products_are_fast(x) else torch.float32
    dtypes_agree = computed == torch.get_autocast_dtype("cpu")
    return x.is_cpu and (dtypes_agree or not torch.is_autocast_enabled("cpu"))


def _fake(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x, memory_format=memory_format(x))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:7])
    ctx.options = inputs[7:]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Through the composite, computed again: nothing but the inputs was kept."""
    needed = ctx.needs_input_grad[:7]
    twice = torch.is_grad_enabled()
    with torch.enable_grad(), composite.no_autocast(grad):
        tensors: list[Any] = [None if t is None else t.view_as(t) for t in ctx.saved_tensors]
        y = composite.attention_block(*tensors, *ctx.options)
        wanted = [t for t, need in zip(tensors, needed, strict=True) if need]
        grads = iter(
            torch.autograd.grad(y, wanted, grad, create_graph=twice, materialize_grads=True)
        )
    return (*(next(grads) if need else None for need in needed), None, None, None, None)


_op = _library.define(
    "attention_block(Tensor x, Tensor? norm_weight, Tensor? norm_bias, Tensor qkv_weight, "
    "Tensor? qkv_bias, Tensor proj_weight, Tensor? proj_bias, int groups, float group_norm_eps, "
    "int heads, float residual_scale) -> Tensor",
    reference=reference.attention_block,
    composite=_fused_or_composite,
    composite_records=_worth_keeping,
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
)
