"""diffusers' own tests of four schedulers, with fastdiff's classes in the place of its own.

git clone --depth 1 --branch v0.40.0 https://github.com/huggingface/diffusers build/diffusers
python tests/diffusers_own_tests.py build/diffusers [--original]

Only the checkout's tests are used; the diffusers under test is the one installed. With --original
nothing is replaced, which tells what would fail anyway.
"""

from __future__ import annotations

import sys
from pathlib import Path

import diffusers
import pytest

import fastdiff

SCHEDULERS = ("DDPM", "DDIM", "DDIMInverse", "DPMSolverMultistep")
FILES = ("scheduler_ddpm", "scheduler_ddim", "scheduler_ddim_inverse", "scheduler_dpm_multi",
         "schedulers")  # fmt: skip


def main(checkout: str, *flags: str) -> int:
    if "--original" not in flags:
        for name in SCHEDULERS:
            setattr(diffusers, f"{name}Scheduler", getattr(fastdiff, f"{name}Scheduler"))
    root = Path(checkout).resolve()
    files = [str(root / "tests" / "schedulers" / f"test_{name}.py") for name in FILES]
    print(
        f"diffusers {diffusers.__version__}, schedulers of {'diffusers' if flags else 'fastdiff'}"
    )
    return pytest.main([*files, "-q", "-rfs", "-W", "ignore", "-p", "no:cacheprovider",
                        "--tb=no", f"--rootdir={root}"])  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
