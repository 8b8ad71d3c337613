"""What every result tells beside its figures; pytest-benchmark adds the machine and the commit.

python -m pytest benchmarks --benchmark-json=benchmarks/results/<machine>/<name>.json
"""

from __future__ import annotations

import importlib.metadata
from typing import Any

import torch


def pytest_benchmark_update_machine_info(config: Any, machine_info: dict[str, Any]) -> None:
    machine_info["torch_threads"] = torch.get_num_threads()
    machine_info["cpu_capability"] = torch.backends.cpu.get_cpu_capability()
    machine_info["gpu"] = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    for name in ("fastdiff", "torch", "numpy"):
        machine_info[f"{name}_version"] = importlib.metadata.version(name)
