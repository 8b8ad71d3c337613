"""What every result tells beside its figures; pytest-benchmark adds the machine and the commit.

python -m pytest benchmarks --benchmark-json=benchmarks/results/<machine>/<name>.json
"""

from __future__ import annotations

import importlib.metadata
import os
from typing import Any

import pytest
import torch

import fastdiff
from benchmarks.ceilings import copy_bandwidth, matrix_rate


def pytest_benchmark_update_machine_info(config: Any, machine_info: dict[str, Any]) -> None:
    machine_info["torch_threads"] = torch.get_num_threads()
    machine_info["cpu_capability"] = torch.backends.cpu.get_cpu_capability()
    machine_info["fastdiff_version"] = fastdiff.__version__
    for name in ("torch", "numpy", "triton", "diffusers"):
        machine_info[f"{name}_version"] = importlib.metadata.version(name)
    machine_info["gpu"] = None
    if torch.cuda.is_available():
        machine_info["gpu"] = torch.cuda.get_device_name()
        machine_info["copy_bytes_per_second"] = copy_bandwidth()
        machine_info["bf16_matrix_operations_per_second"] = matrix_rate()


@pytest.hookimpl(tryfirst=True)
def pytest_benchmark_generate_commit_info(config: Any) -> dict[str, Any] | None:
    """FASTDIFF_COMMIT names the commit where the tree came without its history."""
    commit = os.environ.get("FASTDIFF_COMMIT")
    return {"id": commit, "dirty": False} if commit else None
