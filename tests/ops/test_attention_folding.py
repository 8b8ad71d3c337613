from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastdiff.ops import attention_block, attention_block_folded, fold_single_head
from fastdiff.ops.attention_block import reference
from tests.judge import assert_close_by_law4

from .attention_blocks import EPS, FORMATS, parameters, randn


def folded(x: Tensor, p: list[Tensor | None], groups: int = 4, scale: float = 0.7) -> Tensor:
    return attention_block_folded(
        x, p[0], p[1], fold_single_head(*p[2:]),
        groups=groups, group_norm_eps=EPS, residual_scale=scale,
    )  # fmt: skip


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("absent", [(), (3,), (5,), (0, 1, 3, 5)])
@pytest.mark.parametrize("groups", [0, 4])
def test_it_is_the_block_exactly(
    groups: int, absent: tuple[int, ...], memory_format: torch.memory_format
) -> None:
    x = randn(2, 32, 5, 3, dtype=torch.float64).contiguous(memory_format=memory_format)
    p = [None if i in absent else t for i, t in enumerate(parameters(32, torch.float64))]
    expected = attention_block(
        x, *p, groups=groups, group_norm_eps=EPS, heads=1, residual_scale=0.7
    )
    y = folded(x, p, groups)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    assert y.stride() == expected.stride()


def test_each_bias_has_its_part() -> None:
    x = randn(2, 8, 3, 3, dtype=torch.float64)
    p = parameters(8, torch.float64)
    y = folded(x, p)
    for rows, seen in ((slice(0, 8), True), (slice(8, 16), False), (slice(16, 24), True)):
        changed = [t.clone() for t in p]
        changed[3][rows] += randn(8, dtype=torch.float64, seed=7)
        difference = (folded(x, changed) - y).abs().max()
        assert difference > 1e-3 if seen else difference == 0  # the keys' falls out


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(2, 64, 4, 4), (1, 256, 16, 16), (3, 32, 7, 5)])
def test_by_law4(
    shape: tuple[int, ...], dtype: torch.dtype, memory_format: torch.memory_format
) -> None:
    x = randn(*shape, dtype=dtype).contiguous(memory_format=memory_format)
    p = parameters(shape[1], dtype)
    y = folded(x, p, scale=1.0)
    assert_close_by_law4(y, reference.attention_block, x, *p, 4, EPS, 1, 1.0)


def test_gradient_of_x() -> None:
    x, p = randn(1, 8, 3, 2, dtype=torch.float64).requires_grad_(), parameters(8, torch.float64)
    assert torch.autograd.gradcheck(lambda x: folded(x, p), x)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({0: torch.zeros(16, 8)}, r"qkv_weight has shape \[16, 8\].*give \[24, 8\]"),
        ({1: torch.zeros(8)}, r"qkv_bias has shape \[8\].*give \[24\]"),
        ({2: torch.zeros(8, 4)}, r"proj_weight has shape \[8, 4\].*give \[8, 8\]"),
        ({3: torch.zeros(1)}, r"proj_bias has shape \[1\].*give \[8\]"),
    ],
)
def test_bad_weights(change: dict[int, Tensor], sentence: str) -> None:
    arguments = [change.get(i, p) for i, p in enumerate(parameters(8)[2:])]
    with pytest.raises(ValueError, match=sentence):
        fold_single_head(*arguments)


def test_bad_x() -> None:
    head = fold_single_head(*parameters(8)[2:])
    for x, sentence in (
        (torch.zeros(2, 6, 4), r"score_weight has shape \[8, 8\].*give \[6, 6\]"),
        (torch.zeros(2, 8), r"x has shape \[2, 8\]"),
    ):
        with pytest.raises(ValueError, match=sentence):
            attention_block_folded(x, None, None, head, groups=2, group_norm_eps=EPS)
