"""Kernels compiled once for each kind of x86-64: the lesser ones pass the same tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastdiff.ops import _library

LEVELS = ["baseline", "v3", "v4", "v4_bf16", "v4_amx"]
LESSER = LEVELS[: LEVELS.index(_library.cpu_level())] if _library.native_path() else []
TESTS = "by_law4 or any_shape or small_spread or strided or nan or packed"
KERNELS = [
    "adamw",
    "conv1x1",
    "conv3x3",
    "conv3x3_gradient",
    "conv3x3_in_training",
    "conv3x3_matrix_unit",
    "group_norm_silu",
    "group_norm_silu_gradient",
    "self_attention",
    "strided_conv3x3",
    "total_norm",
]
ROOT = Path(__file__).parents[2]


def run(level: str, *command: str) -> str:
    environment = {**os.environ, "FASTDIFF_CPU_LEVEL": level}
    done = subprocess.run(
        [sys.executable, *command], env=environment, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("level", LESSER)
def test_lesser_processors_pass_the_tests(level: str) -> None:
    script = "from fastdiff.ops._library import cpu_level; print(cpu_level())"
    assert run(level, "-c", script).strip() == level
    files = [f"tests/ops/test_{name}.py" for name in KERNELS]
    assert " passed" in run(level, "-m", "pytest", "-q", *files, "-k", TESTS)
