"""What was built: the sources' one list, the native library's needs, and what it holds."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from fastdiff.ops import _library

ROOT = Path(__file__).parents[1]
NATIVE = _library.native_path()
needs_native = pytest.mark.skipif(NATIVE is None, reason="built without a native library")


@pytest.fixture(scope="module")
def setup() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fastdiff_setup", ROOT / "setup.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def tool(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def build_info() -> dict[str, str]:
    from fastdiff import _build_info

    return _build_info.build_info()


def test_sources_are_listed_once() -> None:
    listed = (ROOT / "csrc/sources.txt").read_text().split()
    there = [p for p in (ROOT / "csrc").rglob("*") if p.suffix in (".cpp", ".cu", ".c", ".cc")]
    assert sorted(listed) == sorted(p.relative_to(ROOT / "csrc").as_posix() for p in there)


def test_a_native_library_is_there_where_it_can_be(setup: ModuleType) -> None:
    asked = setup.build_mode()
    if asked == "none" or setup.cpu_lack():
        assert NATIVE is None
        return
    assert NATIVE is not None and _library.native_error() is None
    cuda = asked == "cuda" or (asked == "auto" and setup.cuda_lack() is None)
    assert build_info()["build"] == ("cuda" if cuda else "cpu")


@needs_native
def test_build_info_names_what_was_built(setup: ModuleType) -> None:
    facts = build_info()
    assert facts["torch_target"] == "2.11"
    assert re.search(r"\d+\.\d+", facts["compiler"])
    assert facts["git_revision"]
    cuda = facts["build"] == "cuda"
    assert bool(facts["cuda_version"]) == cuda
    expected = "sm_80 sm_90a sm_100 compute_100" if cuda else ""
    assert facts["cuda_architectures"] == expected


@needs_native
def test_the_library_needs_the_stable_abi_alone() -> None:
    needed = re.findall(r"NEEDED.*\[(.*)\]", tool("readelf", "-d", str(NATIVE)))
    assert not [n for n in needed if re.search("python|cuda|torch_python", n)]
    undefined = [line.split()[-1] for line in tool("nm", "-D", "-u", str(NATIVE)).splitlines()]
    assert "torch_call_dispatcher" in "\n".join(undefined)
    foreign = [s for s in undefined if re.match(r"_?Py|_Z.*(2at|3c10|5torch)\d", s)]
    assert not foreign, f"symbols outside LibTorch's stable ABI: {foreign}"


@needs_native
def test_the_library_holds_code_for_every_architecture() -> None:
    if build_info()["build"] != "cuda":
        assert not _library.native_kernel("group_norm_silu", "CUDA")
        return
    assert _library.native_kernel("group_norm_silu", "CUDA")
    cuobjdump = cuobjdump_path()
    if cuobjdump is None:
        pytest.skip("no cuobjdump; triton carries one")
    elves = re.findall(r"\.(sm_\w+)\.cubin", tool(cuobjdump, "--list-elf", str(NATIVE)))
    assert set(elves) == {"sm_80", "sm_90a", "sm_100"}
    assert "sm_100.ptx" in tool(cuobjdump, "--list-ptx", str(NATIVE))


def cuobjdump_path() -> str | None:
    triton = importlib.util.find_spec("triton")
    for folder in triton.submodule_search_locations or [] if triton else []:
        carried = Path(folder) / "backends/nvidia/bin/cuobjdump"
        if carried.is_file():
            return str(carried)
    return shutil.which("cuobjdump")


@pytest.mark.parametrize(
    ("mode", "cpu_lack", "cuda_lack", "kind", "note"),
    [
        ("auto", None, None, "cuda", ""),
        ("auto", None, "no nvcc", "cpu", "without CUDA kernels: no nvcc"),
        ("auto", "no compiler", "no nvcc", "none", "without its native library: no compiler"),
        ("cpu", None, None, "cpu", ""),
        ("cpu", None, "no nvcc", "cpu", ""),
        ("cuda", None, None, "cuda", ""),
        ("none", "no compiler", "no nvcc", "none", ""),
    ],
)
def test_plan(
    setup: ModuleType, mode: str, cpu_lack: str, cuda_lack: str, kind: str, note: str
) -> None:
    chosen = setup.plan(mode, cpu_lack, cuda_lack)
    assert chosen.kind == kind
    assert note in chosen.note and bool(note) == bool(chosen.note)


@pytest.mark.parametrize(
    ("mode", "cpu_lack", "cuda_lack", "sentence"),
    [
        ("cpu", "no compiler", None, "FASTDIFF_BUILD=cpu cannot be met: no compiler"),
        ("cuda", "no compiler", None, "FASTDIFF_BUILD=cuda cannot be met: no compiler"),
        ("cuda", None, "no nvcc", "FASTDIFF_BUILD=cuda cannot be met: no nvcc"),
        ("gpu", None, None, "FASTDIFF_BUILD is 'gpu'; give one of auto, cpu, cuda, none"),
    ],
)
def test_plan_that_cannot_be_met(
    setup: ModuleType, mode: str, cpu_lack: str, cuda_lack: str, sentence: str
) -> None:
    with pytest.raises(SystemExit, match=re.escape(sentence)):
        setup.plan(mode, cpu_lack, cuda_lack)


@pytest.mark.parametrize(
    ("says", "lack"),
    [
        ("g++ (Ubuntu 11.4.0-1ubuntu1~22.04) 11.4.0\n(C) Free Software Foundation, Inc.", "GCC 11"),
        ("c++ (GCC) 12.2.1 20220421 (Red Hat)\n(C) Free Software Foundation, Inc.", None),
        ("Debian clang version 11.1.0", None),
    ],
)
def test_a_gcc_too_old_is_named(
    setup: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    says: str,
    lack: str | None,
) -> None:
    compiler = tmp_path / "compiler"
    compiler.write_text(f"#!/bin/sh\necho '{says}'\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    found = setup.cpu_lack()
    assert found is None if lack is None else lack in found


def test_lacks_are_found(setup: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("CUDA_HOME", raising=False)
    assert "install g++" in setup.cpu_lack()
    assert "no nvcc" in setup.cuda_lack()


def test_isolated_builds_fetch_torch_only_to_compile(
    setup: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", sys.executable)
    monkeypatch.delenv("FASTDIFF_BUILD", raising=False)
    assert "torch>=2.11" in setup.get_requires_for_build_wheel()
    monkeypatch.setenv("FASTDIFF_BUILD", "none")
    assert setup.get_requires_for_build_wheel() == []
    monkeypatch.setenv("FASTDIFF_BUILD", "auto")
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert setup.get_requires_for_build_wheel() == []


@pytest.mark.skipif(
    shutil.which("cmake") is None and not Path(sys.prefix, "bin/cmake").is_file(),
    reason="no cmake; the dev extra brings it",
)
def test_cmake_reads_the_same_list(tmp_path: Path) -> None:
    path = f"{sys.prefix}/bin{os.pathsep}{os.environ['PATH']}"
    command = ["cmake", "-S", str(ROOT), "-B", str(tmp_path), "-G", "Ninja"]
    command += ["-DCMAKE_CUDA_COMPILER=NOTFOUND", f"-DPython3_EXECUTABLE={sys.executable}"]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"PATH": path})
    commands = (tmp_path / "compile_commands.json").read_text()
    listed = (ROOT / "csrc/sources.txt").read_text().split()
    for source in listed:
        native = source.endswith(".cpp") and source != "bindings.cpp"
        assert (f"csrc/{source}" in commands) == native
