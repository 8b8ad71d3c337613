"""The CPU's GPU reports what it promises to: kernels with one fault each."""

from __future__ import annotations

import ctypes

import pytest
import torch

from tests.native import on_cpu

FAULTS = {
    "read_past_global": "thread 63 of block 0 reads 4 bytes out of bounds",
    "write_past_global": "thread 63 of block 0 writes 4 bytes out of bounds",
    "read_past_shared": "thread 63 of block 0 reads 4 bytes out of bounds",
    "read_unwritten": "reads what was never written",
    "forget_barrier": "reads what was never written",
    "forget_second_barrier": "races: reads what thread .* wrote, no barrier between",
    "barrier_of_a_warp_alone": "reads what",
    "barrier_of_a_part": "deadlock: 1 threads have ended, 63 wait for __syncthreads",
    "shuffle_of_a_part": "diverges: it meets others at __syncwarp, but thread 0 at a shuffle",
    "forget_to_wait": "reads what a copy is still bringing",
    "misaligned": "uses a misaligned or null address",
    "write_same_place": "races: writes what thread 0 wrote, no barrier between",
    "leave_cluster_early": "reads what was never written",
}


def run(name: str, threads: int = 64) -> torch.Tensor:
    blocks = 2 if name == "leave_cluster_early" else 1
    x = torch.arange(1.0 * threads * blocks)
    with on_cpu.device(on_cpu.H200, [x], []):
        address = ctypes.c_void_p(x.data_ptr())
        on_cpu.check(on_cpu.library().wrong_kernel(name.encode(), address, threads))
    return x


def test_a_right_kernel_passes() -> None:
    assert torch.equal(run("turned_round"), torch.arange(64.0).flip(0))
    assert on_cpu.launches() == [("turned_round", 1, 1)]


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_reported(name: str) -> None:
    with pytest.raises(on_cpu.KernelError, match=FAULTS[name]) as error:
        run(name)
    assert [launch.kernel for launch in on_cpu.launches()] == [name]
    if "+0x" in str(error.value):
        assert "wrong_kernels.cu:" in str(error.value)
    test_a_right_kernel_passes()
