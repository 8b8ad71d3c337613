"""Everything that a GPU must confirm: builds, runs the `gpu` tests and compute-sanitizer; a table.

python tests/gpu_check.py [FOLDER FOR THE LOGS]
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--no-header"]
SMALL_CALLS = [sys.executable, "-u", "-X", "faulthandler", "-m", "tests.ops.small_calls_on_a_gpu"]
SANITIZER = ["compute-sanitizer", "--error-exitcode", "9", "--print-limit", "20"]


def steps() -> dict[str, list[str]]:
    """What to run, by name, in this order."""
    marked = "pytest.mark.gpu"
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    files = [str(f.relative_to(ROOT)) for f in files if marked in f.read_text()]
    parallel = ["-n", "6"] if importlib.util.find_spec("xdist") else []
    return {
        "gpu tests": [*PYTEST, *parallel, "-m", "gpu", "-rs", *files],
        "memcheck": [*SANITIZER, "--tool", "memcheck", *SMALL_CALLS],
        "racecheck": [*SANITIZER, "--tool", "racecheck", *SMALL_CALLS],
    }


def build() -> None:
    """Build the native library where none lies there yet."""
    if not list((ROOT / "fastdiff").glob("_native*.so")):
        command = [sys.executable, "setup.py", "build_ext", "--inplace"]
        subprocess.run(command, cwd=ROOT, check=True)


def run(name: str, command: list[str], logs: Path) -> tuple[str, bool, float, str]:
    start = time.monotonic()
    log = logs / f"{name.replace(' ', '-')}.log"
    with log.open("w") as file:
        done = subprocess.run(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
    lines = log.read_text().strip().splitlines() or ["nothing printed"]
    said = next((line for line in reversed(lines) if re.search(r"passed|SUMMARY", line)), lines[-1])
    return name, done.returncode == 0, time.monotonic() - start, said.strip("= ")


def main() -> None:
    if not torch.cuda.is_available():
        sys.exit("no NVIDIA GPU is at hand: nothing was checked")
    logs = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "build/gpu-check")
    logs.mkdir(parents=True, exist_ok=True)
    build()
    rows = [run(name, command, logs) for name, command in steps().items()]
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; logs in {logs}")
    for name, passed, seconds, said in rows:
        print(f"{name:10} {'passed' if passed else 'FAILED'} {seconds:5.0f} s  {said}")
    sys.exit(not all(passed for _, passed, _, _ in rows))


if __name__ == "__main__":
    main()
