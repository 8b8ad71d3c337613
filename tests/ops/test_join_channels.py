"""join_channels against torch.cat, to the bit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastdiff.ops import _library
from fastdiff.ops.join_channels import join_channels

NATIVE = _library.native_path() is not None
sizes = st.integers(1, 40)


@given(st.integers(0, 3), sizes, sizes, st.integers(0, 9), st.integers(1, 9), st.data())
def test_it_is_cat(n: int, c: int, d: int, height: int, width: int, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    a, b = (
        torch.randn(n, height, width, channels + 3, dtype=dtype)[..., 1 : 1 + channels]
        for channels in (c, d)
    )
    a, b = a.permute(0, 3, 1, 2), b.permute(0, 3, 1, 2)
    if data.draw(st.booleans()):  # of an image that is cut
        a, b = a[:, :, : height // 2], b[:, :, : height // 2]
    before = _library.native_calls("join_channels", "CPU")
    joined = join_channels(a, b)
    assert _library.native_calls("join_channels", "CPU") == before + NATIVE
    assert torch.equal(joined, torch.cat((a, b), dim=1)) and joined.dtype == dtype
    assert joined.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_the_kernel_does_not_take_is_joined_too(dtype: torch.dtype) -> None:
    a, b = torch.randn(2, 5, 8, 8, dtype=dtype), torch.randn(2, 3, 8, 8, dtype=dtype)
    joined = join_channels(a, b)
    assert torch.equal(joined, torch.cat((a, b), dim=1))
    assert joined.is_contiguous(memory_format=torch.channels_last)
    torch.library.opcheck(torch.ops.fastdiff.join_channels.default, (a, b))


def test_a_large_one_on_all_threads() -> None:
    a, b = (
        torch.randn(4, c, 32, 48).contiguous(memory_format=torch.channels_last) for c in (256, 128)
    )
    assert torch.equal(join_channels(a, b), torch.cat((a, b), dim=1))


def test_what_does_not_fit_is_refused() -> None:
    a = torch.zeros(1, 2, 4, 4)
    for b in (torch.zeros(2, 2, 4, 4), torch.zeros(1, 2, 4, 5), torch.zeros(1, 2, 4)):
        with pytest.raises(ValueError, match="differ in C alone"):
            join_channels(a, b)
    with pytest.raises(TypeError, match="float64"):
        join_channels(a, a.double())
