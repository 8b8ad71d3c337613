"""The memory of what the CPU kernels return: used again, never while a tensor still lies there."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastdiff.ops import _library, group_norm_silu
from fastdiff.ops.huge_pages import in_huge_pages
from tests.memory import flags_of_memory_at, lent

pytestmark = pytest.mark.skipif(
    _library.native_path() is None or sys.platform != "linux", reason="of the native library"
)
LEAST = 2**16  # bytes


def output(value: float, floats: int) -> Tensor:
    """[1, 1, floats] of float32 from a kernel, all of them `value`."""
    bias = torch.full((1,), float(value))
    return group_norm_silu(torch.zeros(1, 1, floats), 1, torch.ones(1), bias, 1e-5, silu=False)


def printed(script: str) -> str:
    """By another process, which ends well."""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_place_of_a_tensor_that_went_is_the_next_ones() -> None:
    first = output(1.0, 10**6)
    place = first.data_ptr()
    assert place % 64 == 0 and "hg" in flags_of_memory_at(place)
    del first
    assert output(2.0, 10**6).data_ptr() == place


def test_small_outputs_and_empty_ones_are_torchs() -> None:
    assert output(1.0, LEAST // 4).untyped_storage().resizable() is False
    assert output(1.0, LEAST // 4 - 1).untyped_storage().resizable()
    empty = group_norm_silu(torch.zeros(0, 4, 200, 200), 2, None, None, 1e-5)
    assert empty.untyped_storage().resizable()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int64])
def test_a_copy_of_any_strides(dtype: torch.dtype) -> None:
    x = torch.arange(2**18).view(8, 64, 512).to(dtype).permute(2, 0, 1)[::2]
    before = _library.native_calls("in_huge_pages", "CPU")
    copy = in_huge_pages(x)
    assert _library.native_calls("in_huge_pages", "CPU") == before + 1
    assert copy.is_contiguous() and torch.equal(copy, x)
    assert copy.untyped_storage().resizable() != (dtype.itemsize <= 4)
    torch.library.opcheck(torch.ops.fastdiff.in_huge_pages.default, (x,))


@pytest.mark.parametrize("threads", [1, 4])
def test_no_tensor_is_written_over(threads: int) -> None:
    def wrong_ones(seed: int) -> int:
        draw, kept, wrong = random.Random(seed), dict[int, Tensor](), 0
        for i in range(400):
            value = 1000 * seed + i
            kept[value] = output(value, draw.choice([2**14, 20000, 50001, 2**18, 700000]))
            for gone in draw.sample(sorted(kept), max(0, len(kept) - draw.randrange(1, 12))):
                wrong += not (kept.pop(gone) == gone).all()
        return wrong

    with ThreadPoolExecutor(threads) as pool:
        assert sum(pool.map(wrong_ones, range(threads))) == 0


def test_views_and_arrays_keep_the_place_taken() -> None:
    array, view = output(3.0, 10**5).numpy(), output(4.0, 10**5)[:, :, 5000:5010]
    others = [output(5.0, 10**5) for _ in range(4)]
    assert (array == 3).all() and (view == 4).all() and len(others) == 4


def test_the_system_may_have_what_is_beyond_512_mb() -> None:
    many = [output(float(i), 2**24) for i in range(20)]  # 64 MB each
    places = {tensor.data_ptr() for tensor in many}
    assert all((tensor[0, 0, ::4096] == i).all() for i, tensor in enumerate(many))
    assert lent() < 100
    many.clear()
    assert lent() > 700
    again = [output(float(i), 2**24) for i in range(20)]
    assert {tensor.data_ptr() for tensor in again} == places and lent() < 100
    assert all((tensor[0, 0, ::4096] == i).all() for i, tensor in enumerate(again))


def test_no_more_is_kept_than_was_once_taken_and_512_mb() -> None:
    script = f"""
from tests.memory import resident
from tests.ops.test_huge_pages import output
before = resident()
for floats in ({2**24}, {3 * 2**23}, {2**25}):  # of 64, 96 and 128 MB, which find no old place
    many = [output(1.0, floats) for _ in range(12)]
    many.clear()
print(resident() - before)
"""
    most = 12 * 128 + 512
    assert most - 250 < float(printed(script)) < most + 100


def test_a_child_process_has_its_own_copy() -> None:
    script = f"""
import os, torch
from tests.ops.test_huge_pages import output
kept = output(1.0, {LEAST})
child = os.fork()
if child == 0:
    mine = output(3.0, {LEAST})
    kept.fill_(4.0)
    os._exit(0 if (mine == 3).all() and (kept == 4).all() else 1)
assert os.waitpid(child, 0)[1] == 0 and (kept == 1).all()
"""
    printed(script)


def test_shared_with_another_process_and_saved(tmp_path: Path) -> None:
    tensor = output(6.0, LEAST)
    torch.save(tensor, tmp_path / "it.pt")
    assert torch.equal(torch.load(tmp_path / "it.pt", weights_only=True), tensor)
    assert tensor.share_memory_().is_shared() and (tensor == 6).all()
