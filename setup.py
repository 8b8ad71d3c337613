"""How fastdiff is built: its setuptools script and, for pip, its in-tree build backend.

FASTDIFF_BUILD=auto|cpu|cuda|none says what native code to build. `auto` builds what this machine
can and installs without the rest; `cpu` and `cuda` fail where they cannot be met.
FASTDIFF_WARNINGS=error makes errors of nvcc's warnings, as CI does.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import setuptools
from setuptools.build_meta import *  # noqa: F403  the backend is setuptools', its requirements ours

ROOT = Path(__file__).resolve().parent
MODES = ("auto", "cpu", "cuda", "none")
TORCH_TARGET = (2, 11)
OLDEST_GCC = 12  # the first that chooses a kernel by x86-64 level at run time
ARCHITECTURES = ("80", "90a", "100")
CXX_FLAGS = ["-std=c++20", "-O3", "-g0", "-fvisibility=hidden", "-Wall", "-Wno-psabi"]
CXX_FLAGS += ["-fno-math-errno"]  # roots by vector, without a branch for errno
NVCC_FLAGS = ["-std=c++17", "-O3", "-Xcompiler", "-fPIC,-fvisibility=hidden"]
if os.environ.get("FASTDIFF_WARNINGS") == "error":
    NVCC_FLAGS += ["-Werror", "all-warnings"]
NATIVE_REQUIREMENTS = ["torch>=2.11", "ninja", "pybind11"]


class BuildError(SystemExit):
    """What was asked cannot be built; one sentence says why."""


@dataclass(frozen=True)
class Plan:
    """What to build, "none", "cpu" or "cuda", and the line to print about what is left out."""

    kind: str
    note: str = ""


def plan(mode: str, cpu_lack: str | None, cuda_lack: str | None) -> Plan:
    """Weigh what was asked against what this machine lacks."""
    if mode not in MODES:
        raise BuildError(f"FASTDIFF_BUILD is {mode!r}; give one of {', '.join(MODES)}")
    if mode == "none":
        return Plan("none")
    lack = cpu_lack or (cuda_lack if mode == "cuda" else None)
    if lack and mode != "auto":
        raise BuildError(f"FASTDIFF_BUILD={mode} cannot be met: {lack}")
    if cpu_lack:
        return Plan("none", f"fastdiff is installed without its native library: {cpu_lack}")
    if mode == "auto" and cuda_lack:
        return Plan("cpu", f"fastdiff is installed without CUDA kernels: {cuda_lack}")
    return Plan("cpu" if mode == "cpu" else "cuda")


def build_mode() -> str:
    return os.environ.get("FASTDIFF_BUILD", "auto")


def compiler() -> str | None:
    return shutil.which(os.environ.get("CXX", "c++").split()[0])


def gcc_version() -> int | None:
    """The compiler's major version if it is GCC."""
    said = subprocess.run([compiler() or "c++", "--version"], capture_output=True, text=True).stdout
    version = re.search(r"\) (\d+)\.\d", said.partition("\n")[0])
    return int(version.group(1)) if version and "Free Software Foundation" in said else None


def cpu_lack() -> str | None:
    """What this machine lacks for the C++ kernels, or None."""
    if sys.platform != "linux":
        return f"it is built for Linux alone, and this is {sys.platform}"
    if compiler() is None:
        return "there is no C++ compiler; install g++"
    if (gcc := gcc_version()) is not None and gcc < OLDEST_GCC:
        return f"the compiler is GCC {gcc}; install g++-{OLDEST_GCC} and set CXX=g++-{OLDEST_GCC}"
    try:
        import torch
    except Exception as error:
        return f"torch does not import while building ({error}); install torch>=2.11"
    if tuple(map(int, re.findall(r"\d+", torch.__version__)[:2])) < (2, 11):
        return f"torch is {torch.__version__}; install torch>=2.11"
    return None


def nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME")
    return shutil.which("nvcc", path=f"{home}/bin" if home else None) or shutil.which("nvcc")


def nvcc_says(*options: str) -> str:
    done = subprocess.run([nvcc() or "nvcc", *options], capture_output=True, text=True)
    return done.stdout + done.stderr


def cuda_lack() -> str | None:
    """What this machine lacks for the CUDA kernels, or None."""
    if nvcc() is None:
        return "there is no nvcc; put it on PATH or set CUDA_HOME"
    known = nvcc_says("--list-gpu-code").split()
    unknown = [a for a in ARCHITECTURES if f"sm_{a.rstrip('a')}" not in known]
    if unknown:
        return f"nvcc does not know sm_{unknown[0]}; install CUDA 12.8 or newer"
    if static_runtime() is None:
        return "the CUDA toolkit holds no libcudart_static.a; install its cudart development files"
    return None


def static_runtime() -> Path | None:
    """The folder of libcudart_static.a in the toolkit that nvcc itself names."""
    top = re.search(r"^#\$ TOP=(.*)$", nvcc_says("--dryrun", "x.cu"), re.MULTILINE)
    home = Path(top.group(1)) if top else Path(nvcc() or "nvcc").resolve().parents[1]
    folders = ("lib64", "lib", f"targets/{platform.machine()}-linux/lib")
    found = (home / f for f in folders if (home / f / "libcudart_static.a").is_file())
    return next(found, None)


def sources() -> list[str]:
    """The paths in csrc/sources.txt, from the root."""
    return [f"csrc/{line}" for line in (ROOT / "csrc/sources.txt").read_text().split()]


def extensions(kind: str) -> list[setuptools.Extension]:
    """The native library, and the pybind11 module that tells how it was built."""
    if kind == "none":
        return []
    from torch.utils.cpp_extension import include_paths, library_paths

    headers = [str(p) for p in (ROOT / "csrc").rglob("*") if p.suffix in (".h", ".cu")]
    common = {
        "include_dirs": [*pybind11_include(), *include_paths()],
        "extra_compile_args": CXX_FLAGS,
        "optional": build_mode() == "auto",
        "language": "c++",
    }
    target = f"0x{TORCH_TARGET[0]:02x}{TORCH_TARGET[1]:02x}000000000000"
    macros = [("TORCH_TARGET_VERSION", target)]
    libraries, folders = ["torch", "torch_cpu", "c10", "dl"], library_paths()
    if kind == "cuda":
        macros.append(("FASTDIFF_CUDA", "1"))
        libraries += ["cudart_static", "rt", "pthread"]
        folders = [*folders, str(static_runtime())]
    compiled = [s for s in sources() if s.endswith(".cpp")]
    return [
        setuptools.Extension(
            "fastdiff._native",
            [s for s in compiled if s != "csrc/bindings.cpp"],
            define_macros=macros,
            libraries=libraries,
            library_dirs=folders,
            extra_link_args=["-Wl,--exclude-libs,ALL", "-Wl,--as-needed"],
            depends=headers,
            **common,
        ),
        setuptools.Extension("fastdiff._build_info", ["csrc/bindings.cpp"], **common),
    ]


def pybind11_include() -> list[str]:
    try:
        import pybind11
    except ImportError:  # torch carries the same headers
        return []
    return [pybind11.get_include()]


def build_info_header(kind: str) -> str:
    """The C++ header from which `build_info()` reads."""
    import torch

    release = re.search(r"release ([\d.]+)", nvcc_says("--version")) if kind == "cuda" else None
    codes = [f"sm_{a}" for a in ARCHITECTURES] + [f"compute_{ARCHITECTURES[-1]}"]
    facts = {
        "build": kind,
        "cuda_version": release.group(1) if release else "",
        "cuda_architectures": " ".join(codes) if kind == "cuda" else "",
        "git_revision": git_revision(),
        "torch_target": ".".join(map(str, TORCH_TARGET)),
        "torch_at_build": torch.__version__,
    }
    rows = "".join(f'    {{"{name}", "{value}"}},\n' for name, value in facts.items())
    return f"constexpr const char* kBuildInfo[][2] = {{\n{rows}}};\n"


def git_revision() -> str:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def compile_cuda(folder: Path) -> list[str]:
    """Compile the CUDA sources by nvcc itself: torch's own rules refuse beside a CPU-only torch."""
    codes = [flag for a in ARCHITECTURES for flag in ("-gencode", f"arch=compute_{a},code=sm_{a}")]
    newest = ARCHITECTURES[-1]
    codes += ["-gencode", f"arch=compute_{newest},code=compute_{newest}"]
    changed = max(p.stat().st_mtime for p in (ROOT / "csrc").rglob("*"))

    def compile_one(source: str) -> str:
        target = folder / f"{source}.o"
        if target.is_file() and target.stat().st_mtime > changed:
            return str(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        command = [nvcc() or "nvcc", *NVCC_FLAGS, *codes, "-c", str(ROOT / source)]
        subprocess.run([*command, "-o", str(target)], check=True)
        return str(target)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(compile_one, (s for s in sources() if s.endswith(".cu"))))


def build_command(kind: str) -> type[setuptools.Command]:
    """torch's BuildExtension, with the CUDA objects made beside it."""
    from torch.utils.cpp_extension import BuildExtension

    class Build(BuildExtension):
        def build_extensions(self) -> None:
            try:
                self._prepare()
                super().build_extensions()
            except Exception as error:
                if build_mode() != "auto":
                    raise BuildError(f"FASTDIFF_BUILD={build_mode()} failed: {error}") from error
                print(f"fastdiff is installed without its native library: {error}", file=sys.stderr)

        def _prepare(self) -> None:
            folder = Path(self.build_temp).resolve()
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "build_info.h").write_text(build_info_header(kind))
            native, build_info = self.extensions
            build_info.include_dirs.insert(0, str(folder))
            if kind == "cuda":
                native.extra_objects = compile_cuda(folder)

        def get_ext_filename(self, name: str) -> str:
            # The native library has no Python in it, so its name names none.
            if name.endswith("_native"):
                return name.replace(".", os.sep) + ".so"
            return super().get_ext_filename(name)

    return Build


def build_requirements() -> list[str]:
    """What an isolated build fetches: nothing heavy where nothing will be compiled."""
    return [] if build_mode() == "none" or compiler() is None else NATIVE_REQUIREMENTS


def get_requires_for_build_wheel(config_settings: object = None) -> list[str]:
    return build_requirements()


def get_requires_for_build_editable(config_settings: object = None) -> list[str]:
    return build_requirements()


def get_requires_for_build_sdist(config_settings: object = None) -> list[str]:
    return []


def main() -> None:
    mode = build_mode()
    lacks = (None, None) if mode == "none" else (cpu_lack(), cuda_lack())
    chosen = plan(mode, *lacks)
    if chosen.note:
        print(chosen.note, file=sys.stderr)
    commands = {} if chosen.kind == "none" else {"build_ext": build_command(chosen.kind)}
    setuptools.setup(ext_modules=extensions(chosen.kind), cmdclass=commands)


if __name__ == "__main__":
    main()
