"""A block of one head with its four matrices folded into two."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import check_parameters, check_x
from .composite import add_projection, attend, in_float32, no_autocast, normed_tokens
from .fused import products_are_fast


class FoldedHead(NamedTuple):
    """What a block of one head needs: [C, C], [C], [C, C] and [C].

    Scores of the normed pixels n are `(score_weight @ n_i + score_bias) . n_j / sqrt(C)`, but for a
    term that all of a row share and softmax cancels; the block adds `out_weight @ (softmax n)_i +
    out_bias`.
    """

    score_weight: Tensor
    score_bias: Tensor
    out_weight: Tensor
    out_bias: Tensor


@torch.no_grad()
def fold_single_head(
    qkv_weight: Tensor,
    qkv_bias: Tensor | None,
    proj_weight: Tensor,
    proj_bias: Tensor | None,
) -> FoldedHead:
    """Fold W_k^T W_q and W_o W_v, once, for `attention_block_folded`: two products fewer a call.

    With q_i = W_q n_i + b_q and k_j = W_k n_j + b_k, q_i . k_j = (W_k^T W_q n_i + W_k^T b_q) . n_j
    + q_i . b_k, whose last term is the same for all j. The rows of a softmax sum to 1, so b_v
    comes out as W_o b_v. Computed in float64, rounded once to the weights' dtype.

    Args:
        qkv_weight, qkv_bias, proj_weight, proj_bias: as for `attention_block` with heads=1.

    Raises:
        TypeError: a tensor is not of a floating dtype.
        ValueError: a shape or a device does not fit.
    """
    C = proj_weight.shape[0]
    expected = {
        "qkv_weight": (qkv_weight, (3 * C, C)), "qkv_bias": (qkv_bias, (3 * C,)),
        "proj_weight": (proj_weight, (C, C)), "proj_bias": (proj_bias, (C,)),
    }  # fmt: skip
    check_parameters(expected, "proj_weight", proj_weight)
    w_q, w_k, w_v = qkv_weight.double().chunk(3)
    w_o = proj_weight.double()
    b_q, _, b_v = (w_o.new_zeros(3 * C) if qkv_bias is None else qkv_bias.double()).chunk(3)
    b_o = w_o.new_zeros(C) if proj_bias is None else proj_bias.double()
    folded = (w_k.t() @ w_q, w_k.t() @ b_q, w_o @ w_v, w_o @ b_v + b_o)
    return FoldedHead(*(p.to(qkv_weight.dtype) for p in folded))


def attention_block_folded(
    x: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    folded: FoldedHead,
    *,
    groups: int | None,
    group_norm_eps: float,
    residual_scale: float = 1.0,
) -> Tensor:
    """`attention_block` of one head, whose matrices `fold_single_head` has folded.

    x, norm_weight, norm_bias, the output and what is raised are as there. Differentiable.
    """
    groups = groups or 0
    check_x(x, groups, 1)
    C = x.shape[1]
    expected = {
        "norm_weight": (norm_weight, (C,)), "norm_bias": (norm_bias, (C,)),
        "score_weight": (folded.score_weight, (C, C)), "score_bias": (folded.score_bias, (C,)),
        "out_weight": (folded.out_weight, (C, C)), "out_bias": (folded.out_bias, (C,)),
    }  # fmt: skip
    check_parameters(expected, "x", x)
    dtype = x.dtype
    folded = FoldedHead(*(p.to(dtype) for p in folded))
    if not products_are_fast(x):
        x, folded = in_float32(x), FoldedHead(*(p.float() for p in folded))
    with no_autocast(x):
        n = normed_tokens(x, groups, norm_weight, norm_bias, group_norm_eps)
        q = F.linear(n, folded.score_weight, folded.score_bias)
        mixed = attend(q, n, n, heads=1)
        y = add_projection(x, mixed, folded.out_weight, folded.out_bias, residual_scale)
        return y.to(dtype)
