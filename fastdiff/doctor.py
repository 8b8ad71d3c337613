"""`fastdiff doctor`: what is there, what is missing, what that costs and how to mend it.

Every check stands alone and may fail; a failure is a row of the report, never a traceback.
"""

from __future__ import annotations

import platform
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module

OK, MISSING, BROKEN = "ok", "missing", "broken"
_REBUILD = "pip install --no-build-isolation --force-reinstall --no-deps <fastdiff's folder>"
_OLDEST_TRITON = (3, 6)


@dataclass(frozen=True)
class Finding:
    """One row: what was looked at, its state ("ok", "missing" or "broken"), facts, and the cure."""

    part: str
    state: str
    found: str
    advice: str = ""


@dataclass(frozen=True)
class Report:
    """All findings, in the order in which they are read."""

    findings: tuple[Finding, ...]

    @property
    def healthy(self) -> bool:
        """Whether nothing is broken; what is merely missing costs speed alone."""
        return all(finding.state != BROKEN for finding in self.findings)

    def text(self) -> str:
        """The report as plain lines."""
        lines = []
        for finding in self.findings:
            lines.append(f"{finding.part:<22} {finding.state:<8} {finding.found}")
            if finding.advice:
                lines.append(f"{'':<31} -> {finding.advice}")
        return "\n".join(lines)


def report() -> Report:
    """Look at everything; never raises."""
    findings: list[Finding] = []
    for part, check in _CHECKS.items():
        try:
            findings += check(part)
        except Exception as error:
            findings.append(Finding(part, BROKEN, _brief(error), _ADVICE[part]))
    return Report(tuple(findings))


def main() -> int:
    """Print the report; the exit status is 1 where something is broken."""
    found = report()
    try:
        _print_table(found)
    except Exception:  # rich is missing or broken
        print(found.text())
    return 0 if found.healthy else 1


def _check_python(part: str) -> Iterator[Finding]:
    version = import_module("fastdiff._version").__version__
    yield Finding(part, OK, f"{version}, Python {platform.python_version()}, {platform.machine()}")


def _check_torch(part: str) -> Iterator[Finding]:
    import torch

    capability = torch.backends.cpu.get_cpu_capability()
    threads = torch.get_num_threads()
    yield Finding(part, OK, f"{torch.__version__}, CPU {capability}, {threads} threads")


def _check_gpu(part: str) -> Iterator[Finding]:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        yield Finding(part, OK, f"{', '.join(names)}; torch is built for CUDA {torch.version.cuda}")
    elif torch.version.cuda is None:
        advice = "sampling runs on the CPU; for an NVIDIA GPU install a CUDA build of torch"
        yield Finding(part, MISSING, "this torch is built without CUDA", advice)
    else:
        advice = (
            "sampling runs on the CPU; with an NVIDIA GPU here, see whether nvidia-smi finds it"
        )
        found = f"torch is built for CUDA {torch.version.cuda} but finds no GPU or driver"
        yield Finding(part, MISSING, found, advice)


def _check_toolkit(part: str) -> Iterator[Finding]:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        advice = "only compiling CUDA kernels needs it: CUDA 12.8 or newer"
        yield Finding(part, MISSING, "no nvcc on PATH", advice)
        return
    done = subprocess.run([nvcc, "--version"], capture_output=True, text=True, timeout=20)
    lines = done.stdout.strip().splitlines() or ["says no version"]
    yield Finding(part, OK, f"{lines[-1]} ({nvcc})")


def _check_triton(part: str) -> Iterator[Finding]:
    try:
        triton = import_module("triton")
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        advice = "GPU steps run as plain PyTorch: pip install 'triton>=3.6'"
        yield Finding(part, MISSING, "not installed", advice)
        return
    if tuple(map(int, triton.__version__.split(".")[:2])) < _OLDEST_TRITON:
        yield Finding(part, BROKEN, f"{triton.__version__} is too old", _ADVICE[part])
        return
    yield Finding(part, OK, triton.__version__)


def _check_native(part: str) -> Iterator[Finding]:
    from fastdiff.ops import _library

    path, error = _library.native_path(), _library.native_error()
    if path is None:
        advice = (
            "every op runs as plain PyTorch; install a C++ compiler if there is none, then "
            f"FASTDIFF_BUILD=cpu {_REBUILD}, which tells what it lacks"
        )
        yield Finding(part, MISSING, "not built", advice)
    elif error is not None:
        yield Finding(part, BROKEN, error, f"every op runs as plain PyTorch; {_REBUILD}")
    else:
        yield Finding(part, OK, f"{path}, CPU level {_library.cpu_level()}")


def _check_bfloat16(part: str) -> Iterator[Finding]:
    gain = bfloat16_gain()
    if gain > 1.1:
        found = f"{gain:.1f} times as fast as float32 on this CPU, a 3x3 convolution measured"
        yield Finding(part, OK, found)
    else:
        found = f"no gain on this CPU: {gain:.2f} times as fast as float32, a 3x3 convolution"
        yield Finding(part, OK, found, _ADVICE[part])


def bfloat16_gain() -> float:
    """Seconds of a plan's 3x3 convolution in float32 on this CPU, over those in bfloat16."""
    import torch

    from fastdiff.engine.convolution import convolution

    seconds: dict[torch.dtype, list[float]] = {torch.float32: [], torch.bfloat16: []}
    convolve, image = {}, {}
    with torch.random.fork_rng(devices=[]):  # a caller's draws stay as they would be
        for dtype in seconds:
            convolve[dtype] = convolution(torch.nn.Conv2d(128, 128, 3, padding=1, dtype=dtype))
            x = torch.randn(2, 128, 32, 32)
            image[dtype] = x.to(dtype, memory_format=torch.channels_last)
    end = time.perf_counter() + 1  # where PyTorch alone convolves bfloat16, one call may take 0.3
    with torch.inference_mode():
        while len(seconds[torch.float32]) < 15 and time.perf_counter() < end:
            for dtype, taken in seconds.items():
                began = time.perf_counter()
                convolve[dtype](image[dtype])
                taken.append(time.perf_counter() - began)
    of_float32, of_bfloat16 = map(statistics.median, seconds.values())
    return of_float32 / of_bfloat16


def _check_build(part: str) -> Iterator[Finding]:
    from fastdiff.ops import _library

    if _library.native_path() is None:
        return
    facts = import_module("fastdiff._build_info").build_info()
    architectures = facts["cuda_architectures"]
    cuda = f"CUDA {facts['cuda_version']} for {architectures}" if architectures else "no CUDA"
    found = (
        f"{facts['build']} build of {facts['git_revision']} by {facts['compiler']}, {cuda}, "
        f"for torch {facts['torch_target']} and newer"
    )
    advice = "" if architectures else f"CUDA tensors run as plain PyTorch; with nvcc, {_REBUILD}"
    yield Finding(part, OK, found, advice)


def _check_ops(part: str) -> Iterator[Finding]:
    from fastdiff.ops import _library

    for name in sorted(_library.ops()):
        rest = "composite" if _library.composite_kernel(name) else "reference"
        cpu = "C++" if _library.native_kernel(name, "CPU") else rest
        own = "Triton" if _library.triton_kernel(name) else "CUDA"
        cuda = own if _library.native_kernel(name, "CUDA") else rest
        yield Finding(f"op {name}", OK, f"CPU: {cpu}; CUDA: {cuda}")


_CHECKS: dict[str, Callable[[str], Iterator[Finding]]] = {
    "fastdiff": _check_python,
    "torch": _check_torch,
    "GPU": _check_gpu,
    "CUDA toolkit": _check_toolkit,
    "triton": _check_triton,
    "native library": _check_native,
    "native build": _check_build,
    "bfloat16": _check_bfloat16,
    "ops": _check_ops,
}
_ADVICE = {
    "fastdiff": "reinstall fastdiff",
    "torch": "nothing runs without it: pip install 'torch>=2.11'",
    "GPU": "sampling runs on the CPU; see whether nvidia-smi finds the GPU",
    "CUDA toolkit": "only compiling CUDA kernels needs it: CUDA 12.8 or newer",
    "triton": "GPU steps run as plain PyTorch: pip install --force-reinstall 'triton>=3.6'",
    "native library": f"every op runs as plain PyTorch; {_REBUILD}",
    "native build": f"only the facts of the build are unknown; {_REBUILD}",
    "bfloat16": "on the CPU leave --dtype and --precision at float32",
    "ops": "no sampler runs without them; mend torch, or reinstall fastdiff",
}


def _brief(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"


def _print_table(found: Report) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    colours = {OK: "green", MISSING: "yellow", BROKEN: "red"}
    table = Table(show_edge=False, pad_edge=False)
    for heading in ("part", "state", "what was found, and how to mend it"):
        table.add_column(heading, overflow="fold")
    for finding in found.findings:
        cell = Text(finding.found)
        if finding.advice:
            cell.append(f"\n-> {finding.advice}", style="yellow")
        table.add_row(finding.part, Text(finding.state, style=colours[finding.state]), cell)
    Console().print(table)


if __name__ == "__main__":
    raise SystemExit(main())
