"""The benchmarks run where nobody tests; that each can be read is tested here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_benchmark_is_found() -> None:
    command = [sys.executable, "-m", "pytest", "benchmarks", "--collect-only", "-q"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout
    for file in (ROOT / "benchmarks").glob("bench_*.py"):
        assert f"benchmarks/{file.name}::" in run.stdout
