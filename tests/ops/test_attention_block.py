from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastdiff.ops import _library, attention_block
from fastdiff.ops.attention_block import fused, reference
from fastdiff.ops.attention_block.fused import fused_takes
from fastdiff.ops.self_attention import faster_than_sdpa
from tests.judge import assert_close_by_law4

from .attention_blocks import EPS, FORMATS, parameters, randn

OP = torch.ops.fastdiff.attention_block.default
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


@pytest.fixture(params=[False, True], ids=["recorded", "inference"])
def either_mode(request: pytest.FixtureRequest) -> Iterator[None]:
    with torch.set_grad_enabled(not request.param):
        yield


@contextlib.contextmanager
def native_parts_serve(x: Tensor, heads: int) -> Iterator[None]:
    """Fails where the reference answered in the composite's place, or that in the one call's."""

    def calls() -> tuple[int, int]:
        composite = _library.composite_calls("attention_block", "CPU")
        return composite, _library.native_calls("attention_block_fused", "CPU")

    before, whole = calls(), not torch.is_grad_enabled() and fused_takes(x, heads)
    yield
    assert calls() == (before[0] + 1, before[1] + (whole and x.numel() > 0))


def native_norms() -> int:
    ops = ("group_norm_silu", "attention_block_fused")
    return sum(_library.native_calls(op, "CPU") for op in ops)


def judge(
    x: Tensor, p: list[Any], groups: int = 4, heads: int = 1, residual_scale: float = 1.0
) -> Tensor:
    """By law 4, recorded by autograd where gradients are on."""
    given = [
        None if t is None else t.detach().requires_grad_(torch.is_grad_enabled()) for t in (x, *p)
    ]
    options = {"groups": groups, "group_norm_eps": EPS, "heads": heads}
    with native_parts_serve(x, heads):
        y = attention_block(*given, **options, residual_scale=residual_scale).detach()
    assert_close_by_law4(y, reference.attention_block, x, *p, groups, EPS, heads, residual_scale)
    return y


def test_reference_is_the_formula() -> None:
    x, p = randn(2, 6, 3, 2, dtype=torch.float64), parameters(6, torch.float64)
    norm_weight, norm_bias, qkv_weight, qkv_bias, proj_weight, proj_bias = (t.numpy() for t in p)
    flat = x.numpy().reshape(2, 6, 6)
    grouped = flat.reshape(2, 3, -1)
    mean, variance = grouped.mean(-1, keepdims=True), grouped.var(-1, keepdims=True)
    n = ((grouped - mean) / np.sqrt(variance + EPS)).reshape(flat.shape)
    n = n * norm_weight[:, None] + norm_bias[:, None]
    out = np.empty_like(flat)
    for sample in range(2):
        q, k, v = (qkv_weight @ n[sample] + qkv_bias[:, None]).reshape(3, 2, 3, 6)  # two heads
        mixed = np.empty((2, 3, 6))
        for head in range(2):
            for i in range(6):
                weights = np.exp(q[head][:, i] @ k[head] / np.sqrt(3))
                mixed[head][:, i] = v[head] @ weights / weights.sum()
        h = proj_weight @ mixed.reshape(6, 6) + proj_bias[:, None]
        out[sample] = 0.7 * (flat[sample] + h)
    y = reference.attention_block(x, *p, 3, EPS, 2, 0.7)
    np.testing.assert_allclose(y, out.reshape(x.shape), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("rescale", [1.0, math.sqrt(2)])
@pytest.mark.parametrize("heads", [1, 4])
def test_it_is_diffusers_attention(heads: int, rescale: float) -> None:
    from diffusers.models.attention_processor import Attention

    torch.manual_seed(0)
    theirs = Attention(
        32, heads=heads, dim_head=32 // heads, rescale_output_factor=rescale, eps=EPS,
        norm_num_groups=8, residual_connection=True, bias=True, upcast_softmax=True,
        _from_deprecated_attn_block=True,
    ).double()  # fmt: skip
    qkv, proj = (theirs.to_q, theirs.to_k, theirs.to_v), theirs.to_out[0]
    x = randn(2, 32, 5, 4, dtype=torch.float64)
    with torch.no_grad():
        y = attention_block(
            x, theirs.group_norm.weight, theirs.group_norm.bias,
            torch.cat([layer.weight for layer in qkv]), torch.cat([layer.bias for layer in qkv]),
            proj.weight, proj.bias,
            groups=8, group_norm_eps=EPS, heads=heads, residual_scale=1 / rescale,
        )  # fmt: skip
        torch.testing.assert_close(y, theirs(x), rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("either_mode")
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "groups", "heads"),
    [
        ((3, 32, 1, 1), 8, 1),
        ((1, 64, 4, 4), 32, 2),
        ((2, 96, 5, 3), 32, 1),
        ((2, 48, 7, 7), 0, 4),
        ((1, 256, 16, 16), 32, 1),
        ((4, 128, 16, 16), 32, 8),
        ((1, 512, 8, 8), 32, 8),
        ((1, 64, 32, 32), 32, 1),
    ],
)
def test_by_law4(
    shape: tuple[int, ...], groups: int, heads: int, dtype: torch.dtype,
    memory_format: torch.memory_format,
) -> None:  # fmt: skip
    x = randn(*shape, dtype=dtype).contiguous(memory_format=memory_format)
    judge(x, parameters(shape[1], dtype), groups, heads, residual_scale=1 / math.sqrt(2))


# Many samples: of a few dozen elements the largest error is a matter of luck, not of the kernel.
@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(40, 44),
    heads=st.sampled_from([1, 2, 4, 8]),
    head_dim=st.integers(1, 12),
    spatial=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    dtype=st.sampled_from(DTYPES),
    present=st.lists(st.booleans(), min_size=4, max_size=4),
    channels_last=st.booleans(),
    normed=st.booleans(),
    residual_scale=st.sampled_from([1.0, 0.5, -2.0]),
    inference=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_shape_by_law4(
    batch: int,
    heads: int,
    head_dim: int,
    spatial: list[int],
    dtype: torch.dtype,
    present: list[bool],
    channels_last: bool,
    normed: bool,
    residual_scale: float,
    inference: bool,
    seed: int,
) -> None:
    C = heads * head_dim
    x = randn(batch, C, *spatial, dtype=dtype, seed=seed)
    if channels_last and x.dim() in (4, 5):
        formats = {4: torch.channels_last, 5: torch.channels_last_3d}
        x = x.to(memory_format=formats[x.dim()])
    p: list[Tensor | None] = [*parameters(C, dtype, seed)]
    for index, there in zip((0, 1, 3, 5), present, strict=True):
        p[index] = p[index] if there else None
    with torch.set_grad_enabled(not inference):
        judge(x, p, heads if normed else 0, heads, residual_scale)


@pytest.mark.usefixtures("either_mode")
@pytest.mark.parametrize("memory_format", FORMATS)
def test_small_spread_about_a_large_offset(memory_format: torch.memory_format) -> None:
    x = (randn(2, 32, 6, 6) * 0.1 + 1e4).contiguous(memory_format=memory_format)
    judge(x, parameters(32), 8, 2)


@pytest.mark.usefixtures("either_mode")
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_peaked_softmax(dtype: torch.dtype) -> None:
    """Scores of tens: rounded to a short dtype they would err ten times as much as allowed."""
    p = parameters(32, dtype)
    p[2] = p[2] * 3
    judge(randn(2, 32, 8, 8, dtype=dtype), p, 8)


@pytest.mark.usefixtures("either_mode")
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("groups", [0, 4])
def test_nan_and_inf_spoil_their_sample_alone(
    groups: int, bad: float, memory_format: torch.memory_format
) -> None:
    x = randn(2, 16, 3, 5).contiguous(memory_format=memory_format)
    x[1, 6, 2, 3] = bad
    y = judge(x, parameters(16), groups, 2)
    assert y[1].isnan().all() and y[0].isfinite().all()


@pytest.mark.parametrize("view", ["cropped", "transposed", "every other channel", "expanded"])
def test_strided_input(view: str) -> None:
    x = {
        "cropped": randn(2, 16, 9, 9)[:, :, 1:8, 2:7],
        "transposed": randn(2, 16, 5, 9).transpose(2, 3),
        "every other channel": randn(2, 32, 5, 5).to(memory_format=torch.channels_last)[:, ::2],
        "expanded": randn(1, 16, 5, 5).expand(3, 16, 5, 5),
    }[view]
    p = parameters(32)
    strided = [p[0][::2], p[1][:16], p[2][:48, ::2], p[3][::2], p[4].t()[:16, :16], p[5][:16]]
    assert judge(x, [t[:48] for t in strided]).is_contiguous()


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("shape", [(0, 8, 4, 4), (2, 8, 0, 4)])
def test_empty(shape: tuple[int, ...], memory_format: torch.memory_format) -> None:
    x = torch.empty(shape).contiguous(memory_format=memory_format).requires_grad_()
    y = attention_block(x, *parameters(8), groups=4, group_norm_eps=EPS, heads=2)
    assert y.shape == shape
    y.sum().backward()
    assert x.grad is not None and x.grad.shape == shape


@pytest.mark.parametrize("memory_format", FORMATS)
def test_every_input_matters(memory_format: torch.memory_format) -> None:
    x = randn(2, 16, 4, 3).contiguous(memory_format=memory_format)
    inputs, options = [x, *parameters(16)], (4, EPS, 2, 1.0)
    y = OP(*inputs, *options)
    for index in range(len(inputs)):
        changed = list(inputs)
        changed[index] = inputs[index] + 0.3 * randn(*inputs[index].shape, seed=7)
        assert (OP(*changed, *options) - y).abs().max() > 1e-3, index
    for other in ((2, EPS, 2, 1.0), (4, 1.0, 2, 1.0), (4, EPS, 4, 1.0), (4, EPS, 2, 0.9)):
        assert (OP(*inputs, *other) - y).abs().max() > 1e-3, other


def test_the_inputs_are_left_as_they_are() -> None:
    for memory_format in FORMATS:
        inputs = [randn(2, 16, 4, 3).contiguous(memory_format=memory_format), *parameters(16)]
        for absent in (None, 6):
            given = [t if i != absent else None for i, t in enumerate(inputs)]
            before = [None if t is None else t.clone() for t in given]
            OP(*given, 4, EPS, 2, 1.0)
            for now, then in zip(given, before, strict=True):
                assert now is None or torch.equal(now, then)


def test_nothing_is_copied_for_channels_last() -> None:
    x, p = randn(2, 64, 8, 8).to(memory_format=torch.channels_last), parameters(64)
    with torch.profiler.profile() as profile, torch.no_grad():
        attention_block(x, *p, groups=8, group_norm_eps=EPS, heads=2)
    names = {event.key for event in profile.key_averages()}
    assert names & {"fastdiff::attention_block_fused", "fastdiff::group_norm_silu"}
    assert "aten::clone" not in names


@pytest.mark.parametrize("groups", [0, 2])
@pytest.mark.parametrize("absent", [(), (1, 2, 4, 6)])
@pytest.mark.parametrize("memory_format", FORMATS)
def test_gradients(
    memory_format: torch.memory_format, absent: tuple[int, ...], groups: int
) -> None:
    x = randn(2, 6, 2, 2, dtype=torch.float64).contiguous(memory_format=memory_format)
    inputs = [
        None if i in absent else t.requires_grad_()
        for i, t in enumerate([x, *parameters(6, torch.float64)])
    ]
    leaves = [t for t in inputs if t is not None]
    options = (groups, EPS, 2, 0.7)
    assert torch.autograd.gradcheck(lambda *t: OP(*t, *options), inputs)
    seed = randn(*x.shape, dtype=torch.float64, seed=9)
    found = torch.autograd.grad(OP(*inputs, *options), leaves, seed, allow_unused=True)
    plain = reference.attention_block(*inputs, *options)
    expected = torch.autograd.grad(plain, leaves, seed, allow_unused=True, materialize_grads=True)
    for f, e in zip(found, expected, strict=True):
        torch.testing.assert_close(torch.zeros_like(e) if f is None else f, e)


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_by_law4(
    dtype: torch.dtype, memory_format: torch.memory_format, recorded: bool
) -> None:
    x = randn(2, 32, 6, 5, dtype=dtype).contiguous(memory_format=memory_format)
    inputs, options = [x, *parameters(32, dtype)], (8, EPS, 2, 0.7)
    seed = randn(*x.shape, dtype=dtype, seed=9)

    def eager(x: Tensor, *p: Any) -> Tensor:
        """With SDPA, whose own gradient on the CPU errs more than the written-out softmax's."""
        n = F.group_norm(x, 8, p[0], p[1], EPS).flatten(2).transpose(1, 2)
        q, k, v = F.linear(n, p[2], p[3]).unflatten(2, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        h = F.linear(mixed, p[4], p[5]).transpose(1, 2).reshape(x.shape)
        return (x + h) * 0.7

    def gradient(f: Any, index: int, *inputs: Tensor) -> Tensor:
        leaves = [t.detach().requires_grad_() for t in inputs]
        y = f(*leaves, *options)
        return torch.autograd.grad(y, leaves, seed.to(y.dtype))[index].contiguous()

    def public(x: Tensor, *p: Any) -> Tensor:
        given = dict(
            zip(("groups", "group_norm_eps", "heads", "residual_scale"), p[6:], strict=True)
        )
        return attention_block(x, *p[:6], **given)

    for index in range(len(inputs)):
        before = native_norms()
        actual = gradient(public if recorded else OP, index, *inputs)
        normed = native_norms() - before
        assert normed == (0 if _library.native_path() is None else 1 if recorded else 2)
        if index == 4:  # the part of the keys' bias is rounding alone: softmax does not see it
            kept = torch.arange(96).div(32, rounding_mode="floor") != 1
            assert actual[~kept].abs().max() < 1e-2 * actual[kept].abs().max()
        else:
            kept = torch.ones(len(actual), dtype=torch.bool)
        assert_close_by_law4(
            actual[kept],
            lambda *t, k=index, kept=kept: gradient(eager, k, *t)[kept],
            *inputs,
        )


def test_only_the_gradients_asked_for() -> None:
    x, p = randn(2, 16, 3, 3).to(memory_format=torch.channels_last), parameters(16)
    p[4].requires_grad_()
    attention_block(x, *p, groups=4, group_norm_eps=EPS, heads=2).sum().backward()
    assert p[4].grad is not None and all(t.grad is None for t in (x, *p[:4], p[5]))


def test_one_tensor_given_twice_gets_both_gradients() -> None:
    x, p = randn(2, 8, 3, 3, dtype=torch.float64), parameters(8, torch.float64)
    shared = p[0].requires_grad_()
    inputs, options = (x, shared, shared, *p[2:]), (4, EPS, 2, 1.0)
    (found,) = torch.autograd.grad(OP(*inputs, *options).square().sum(), shared)
    plain = reference.attention_block(*inputs, *options)
    torch.testing.assert_close(found, torch.autograd.grad(plain.square().sum(), shared)[0])


@pytest.mark.parametrize("groups", [0, 4])
def test_second_gradient_is_refused(groups: int) -> None:
    x = randn(1, 8, 3, 3).requires_grad_()
    y = attention_block(x, *parameters(8), groups=groups, group_norm_eps=EPS, heads=2)
    (grad,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"not implemented|has no gradient"):
        torch.autograd.grad(grad.sum(), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("memory_format", FORMATS)
def test_opcheck(memory_format: torch.memory_format, dtype: torch.dtype) -> None:
    x = randn(2, 8, 5, 3, dtype=dtype).contiguous(memory_format=memory_format)
    p = [t.requires_grad_() for t in parameters(8, dtype)]
    torch.library.opcheck(OP, (x.requires_grad_(), *p, 4, EPS, 2, 0.5))
    plain = (p[2].detach(), None, p[4].detach(), None)
    torch.library.opcheck(OP, (x.detach()[:, :, 1:], None, None, *plain, 0, EPS, 1, 1.0))


def test_compiles_whole() -> None:
    x, p = randn(2, 8, 5, 3).requires_grad_(), parameters(8)

    def block(x: Tensor) -> Tensor:
        return attention_block(x * 2, *p, groups=4, group_norm_eps=EPS, heads=2) + 1

    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), block(x), rtol=0, atol=0)
    as_compiled = OP(x * 2, *p, 4, EPS, 2, 1.0) + 1  # block(x) records the composite's own calls
    torch.testing.assert_close(compiled(x), as_compiled, rtol=0, atol=0)
    torch.testing.assert_close(as_compiled, block(x))
    (expected,) = torch.autograd.grad(block(x).sum(), x)
    torch.testing.assert_close(torch.autograd.grad(compiled(x).sum(), x)[0], expected)


@torch.no_grad()
def test_autocast_changes_nothing_in_inference() -> None:
    p = parameters(16)
    for dtype in (torch.float32, torch.bfloat16):
        x = randn(2, 16, 3, 3, dtype=dtype).to(memory_format=torch.channels_last)
        outside = judge(x, [t.to(dtype) for t in p])
        for autocast_to in (torch.bfloat16, torch.float16):
            with torch.autocast("cpu", autocast_to):
                assert torch.equal(judge(x, [t.to(dtype) for t in p]), outside)


def test_autocast_computes_in_the_dtype_of_x() -> None:
    """In another dtype than autocast's the op serves, whose forward is inference's."""
    p = parameters(16)

    def public(x: Tensor) -> Tensor:
        return attention_block(x, *p, groups=4, group_norm_eps=EPS, heads=2)

    def op(x: Tensor) -> Tensor:
        return OP(x, *p[:2], *(t.to(x.dtype) for t in p[2:]), 4, EPS, 2, 1.0)

    for dtype in (torch.float32, torch.bfloat16):
        x = randn(2, 16, 3, 3, dtype=dtype).requires_grad_()
        results = []
        records = dtype == torch.bfloat16 and fused.products_are_fast(x)
        for call, enabled in ((public if records else op, False), (public, True)):
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                y = call(x)
                results += [y, torch.autograd.grad(y.square().sum(), x)[0]]
        assert results[0].dtype == dtype
        for without, within in zip(results[:2], results[2:], strict=True):
            assert torch.equal(without, within)


def test_parameters_of_another_dtype_get_gradients_of_their_own() -> None:
    x, p = randn(2, 16, 3, 3, dtype=torch.bfloat16), parameters(16)
    for t in p:
        t.requires_grad_()
    attention_block(x, *p, groups=4, group_norm_eps=EPS, heads=2).sum().backward()
    assert all(t.grad.dtype == torch.float32 for t in p)


@pytest.mark.parametrize("memory_format", FORMATS)
def test_inference_goes_past_the_dispatcher_to_the_same(memory_format: torch.memory_format) -> None:
    x, p = randn(2, 16, 3, 5).contiguous(memory_format=memory_format), parameters(16)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert torch.equal(judge(x, p, heads=2), OP(x, *p, 4, EPS, 2, 1.0))


@pytest.mark.usefixtures("either_mode")
@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_dtypes_that_onednn_knows_or_refuses(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, memory_format: torch.memory_format,
    known: bool,
) -> None:  # fmt: skip
    monkeypatch.setattr(fused, "onednn_knows", lambda dtype: known)
    x = randn(3, 64, 7, 6, dtype=dtype).contiguous(memory_format=memory_format)
    with torch.profiler.profile() as profile:
        judge(x, parameters(64, dtype), 8, 2, 0.7)
    norms = [e for e in profile.events() if e.name == "fastdiff::group_norm_silu"]
    assert known or len(norms) == 1  # by the composite, of x in float32


def test_one_native_call_serves_inference_on_channels_last() -> None:
    x = randn(1, 64, 8, 8).to(memory_format=torch.channels_last)
    assert fused_takes(x, heads=1) == faster_than_sdpa(x, of_head=x.numel())
    assert not fused_takes(x.contiguous(), heads=1)
    assert not fused_takes(x.double(), heads=1)
    with _library.use_reference("group_norm_silu"):
        assert not fused_takes(x, heads=1)
    assert not _library.native_kernel("attention_block", "CPU")
    assert _library.composite_kernel("attention_block")


@pytest.mark.skipif(_library.native_path() is None, reason="the native library is not built")
def test_the_native_call_refuses_what_does_not_fit() -> None:
    x = randn(1, 16, 4, 4).to(memory_format=torch.channels_last)
    p = parameters(16)
    folded = [*p[:2], p[2][:16], p[3][:16], *p[4:]]
    for weights, groups, heads in ((folded, 4, 1), (p, 3, 1), (p, 4, 3)):
        with torch.no_grad(), pytest.raises(RuntimeError, match="do not fit 16 channels"):
            torch.ops.fastdiff.attention_block_fused(x, *weights, groups, EPS, heads, 1.0)


@pytest.mark.skipif(_library.native_path() is None, reason="the native library is not built")
def test_the_fused_kernel_refuses_a_gradient() -> None:
    x, *p = (t.to("meta", torch.bfloat16) for t in (torch.zeros(1, 64, 8, 8), *parameters(64)))
    x = x.contiguous(memory_format=torch.channels_last)
    p[2].requires_grad_()
    y = torch.ops.fastdiff.attention_block_fused(x, *p, 8, EPS, 1, 1.0)
    assert y.shape == x.shape and y.stride() == x.stride()
    with pytest.raises(NotImplementedError, match="attention_block_fused has no gradient"):
        y.sum().backward()


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        ({"x": torch.zeros(4, 8)}, ValueError, r"x has shape \[4, 8\].*\[N, C, \*spatial\]"),
        ({"x": torch.zeros(2, 8, 4, dtype=torch.int64)}, TypeError, "x is torch.int64"),
        ({"groups": 3}, ValueError, "groups is 3, which does not divide the 8 channels"),
        ({"groups": -1}, ValueError, "groups is -1"),
        ({"heads": 3}, ValueError, "heads is 3, which does not divide the 8 channels"),
        ({"heads": 0}, ValueError, "heads is 0"),
        ({"norm_weight": torch.zeros(7)}, ValueError, r"norm_weight has shape \[7\].*give \[8\]"),
        ({"qkv_weight": torch.zeros(8, 24)}, ValueError, r"qkv_weight.*give \[24, 8\]"),
        ({"qkv_bias": torch.zeros(8)}, ValueError, r"qkv_bias has shape \[8\].*give \[24\]"),
        ({"proj_weight": torch.zeros(8, 8, 1)}, ValueError, r"proj_weight.*give \[8, 8\]"),
        ({"proj_bias": torch.zeros(8).int()}, TypeError, "proj_bias is torch.int32"),
        (
            {"proj_weight": torch.zeros(8, 8, device="meta")},
            ValueError,
            "proj_weight is on meta and x on cpu",
        ),
    ],
)
def test_bad_input(change: dict[str, Any], error: type[Exception], sentence: str) -> None:
    names = ("norm_weight", "norm_bias", "qkv_weight", "qkv_bias", "proj_weight", "proj_bias")
    arguments = dict(zip(names, parameters(8), strict=True))
    arguments |= {"x": torch.zeros(2, 8, 4), "groups": 4, "group_norm_eps": EPS, "heads": 2}
    with pytest.raises(error, match=sentence):
        attention_block(**arguments | change)
