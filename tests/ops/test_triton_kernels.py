"""The Triton kernels, where they run and where they are missing or broken."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from fastdiff.ops import _library

ROOT = Path(__file__).parents[2]
OPS = ["biased_sum_", "philox_normal", "q_sample", "denoise_step", "denoise_step_"]


def run_kernels(**environment: str) -> None:
    """Run triton_kernels.py; not one of its tests may be skipped."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--no-header"]
    if environment["TRITON_INTERPRET"] == "0" and importlib.util.find_spec("xdist"):
        command += ["-n", "8"]  # compiling is most of it
    done = subprocess.run(
        [*command, "tests/ops/triton_kernels.py"],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.fullmatch(r"\d+ passed in .*", done.stdout.strip().splitlines()[-1]), done.stdout


def test_kernels_in_tritons_interpreter() -> None:
    run_kernels(TRITON_INTERPRET="1")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_kernels_on_a_gpu() -> None:
    run_kernels(TRITON_INTERPRET="0")


@pytest.mark.parametrize("op", OPS)
def test_cuda_tensors_go_to_triton(op: str) -> None:
    assert _library.native_kernel(op, "CUDA") and _library.triton_kernel(op)
    assert not _library.triton_kernel("group_norm_silu")


def test_triton_is_not_loaded_before_a_cuda_tensor_comes() -> None:
    program = "import sys, fastdiff, fastdiff.ops; sys.exit('triton' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def double(x: Tensor) -> Tensor:
    return 2 * x


def test_calls_of_the_kernel_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_library, "_triton_ops", {"double"})
    monkeypatch.setattr(importlib, "import_module", lambda name: SimpleNamespace(double=double))
    assert torch.equal(
        _library._triton_kernel("double", double)(torch.ones(2)), torch.full((2,), 2.0)
    )
    assert _library.native_calls("double", "CUDA") == 1
    assert _library.native_calls("double", "CPU") == 0


def broken_module(name: str) -> object:
    raise ImportError(f"{name} needs a newer driver")


def test_a_broken_triton_costs_speed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib, "import_module", broken_module)
    monkeypatch.delenv("FASTDIFF_STRICT", raising=False)
    kernel = _library._triton_kernel("double", double)
    with pytest.warns(
        RuntimeWarning, match=r"since its Triton kernel fails \(ImportError: .*driver"
    ):
        assert torch.equal(kernel(torch.ones(2)), torch.full((2,), 2.0))
    monkeypatch.setenv("FASTDIFF_STRICT", "1")
    with pytest.raises(RuntimeError, match="FASTDIFF_STRICT=0 allows it"):
        kernel(torch.ones(2))


def test_a_triton_that_changes_bits_is_refused() -> None:
    check_bits = importlib.import_module("fastdiff.ops.triton").check_bits
    with pytest.raises(RuntimeError, match=r"triton 3\.6\.0 fuses .* install triton 3\.7 or newer"):
        check_bits(10, "3.6.0")
    check_bits(9, "3.6.0")
    check_bits(10, "3.7.0")


def test_memory_running_out_is_told_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(x: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(importlib, "import_module", lambda name: SimpleNamespace(double=full))
    with pytest.raises(torch.OutOfMemoryError):
        _library._triton_kernel("double", double)(torch.ones(2))
