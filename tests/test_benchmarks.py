"""The benchmarks run where nobody tests; that each can be read is tested here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks import render

ROOT = Path(__file__).parents[1]


def test_every_benchmark_is_found() -> None:
    command = [sys.executable, "-m", "pytest", "benchmarks", "--collect-only", "-q"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout
    for file in (ROOT / "benchmarks").glob("bench_*.py"):
        assert f"benchmarks/{file.name}::" in run.stdout


def test_a_cell_is_told_by_the_newest_run_that_timed_it(tmp_path: Path) -> None:
    def timed(day: str, threads: int, **fastdiff: float) -> None:
        cpu = {"brand_raw": "CPU"}
        info = {"gpu": None, "torch_threads": threads, "cpu_capability": "AVX2", "cpu": cpu}
        found: list[dict[str, Any]] = [
            {
                "fullname": f"benchmarks/bench_op.py::test_step[{name}]",
                "extra_info": {"medians_us": {"fastdiff": us, "eager": 12.0}},
            }
            for name, us in fastdiff.items()
        ]
        results = {
            "datetime": day,
            "commit_info": {"id": f"commit of {day}"},
            "machine_info": info | {"torch_version": "2"},
            "benchmarks": found,
        }
        (tmp_path / f"{100 - int(day[-2:])}.json").write_text(json.dumps(results))

    def ratios() -> dict[str, tuple[float, str]]:
        (bench,) = render.benches(tmp_path)
        return {cell.name: (cell.ratio, cell.run.file) for cell in bench.cells}

    timed("2026-01-01", 2, small=6, large=4)
    timed("2026-01-02", 2, large=3)
    assert ratios() == {"small": (2, "99.json"), "large": (4, "98.json")}
    table = render.table(*render.benches(tmp_path))
    assert table.count("98.json") == 2 and "| large | 3 | 12 | 4.00 |" in table
    timed("2026-01-03", 1, large=2)
    assert ratios() == {"large": (6, "97.json")}
