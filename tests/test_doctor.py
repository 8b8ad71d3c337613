"""Each test breaks one thing; the doctor must tell of it and never fall over."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastdiff
from fastdiff import doctor
from fastdiff.ops import _library

PACKAGE = Path(fastdiff.__file__).parent

NO_TORCH = "import sys; sys.modules['torch'] = None"


def run_doctor(folder: Path, before: str = "") -> tuple[int, str]:
    program = f"{before}\nimport sys; from fastdiff.doctor import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env={"PYTHONPATH": str(folder), "PATH": "/usr/bin:/bin", "COLUMNS": "200"},
        capture_output=True,
        text=True,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A folder that holds a copy of the package, to be broken at will."""
    shutil.copytree(PACKAGE, tmp_path / "fastdiff", ignore=shutil.ignore_patterns("assets"))
    return tmp_path


def finding(part: str) -> doctor.Finding:
    (found,) = (f for f in doctor.report().findings if f.part == part)
    return found


def test_tells_every_op_and_its_kernels() -> None:
    assert set(_library.ops()) >= {"group_norm_silu", "philox_normal", "denoise_step"}
    for name in _library.ops():
        found = finding(f"op {name}").found
        assert ("CPU: C++" in found) == _library.native_kernel(name, "CPU")
        python = "CUDA: composite" if _library.composite_kernel(name) else "CUDA: reference"
        assert (python not in found) == _library.native_kernel(name, "CUDA")
        assert ("CUDA: Triton" in found) == _library.triton_kernel(name)


def test_tells_versions() -> None:
    assert finding("torch").found.startswith(torch.__version__)
    assert fastdiff.__version__ in finding("fastdiff").found


def test_a_whole_install_is_healthy(copy: Path) -> None:
    status, text = run_doctor(copy)
    assert status == 0
    assert "group_norm_silu" in text


def test_a_corrupt_library_is_reported_and_the_reference_serves(copy: Path) -> None:
    (copy / "fastdiff" / "_native.so").write_bytes(b"no ELF file")
    status, text = run_doctor(copy)
    assert status == 1
    assert "_native.so does not load" in text and "pip install" in text
    assert "CPU: C++" not in text and "CPU: reference" in text


def test_a_library_never_built(copy: Path) -> None:
    for library in (copy / "fastdiff").glob("*.so"):
        library.unlink()
    status, text = run_doctor(copy)
    assert status == 0
    assert "not built" in text and "CPU: reference" in text


def test_no_torch(copy: Path) -> None:
    status, text = run_doctor(copy, NO_TORCH)
    assert status == 1
    assert "pip install 'torch>=2.11'" in text


def test_a_lost_build_info(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_library, "native_path", lambda: Path("_native.so"))
    monkeypatch.setitem(sys.modules, "fastdiff._build_info", None)
    assert finding("native build").state == doctor.BROKEN
    assert "only the facts of the build are unknown" in finding("native build").advice


def test_triton_that_raises(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "triton.py").write_text("raise RuntimeError('libcuda is odd')")
    monkeypatch.delitem(sys.modules, "triton", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    assert finding("triton").state == doctor.BROKEN
    assert finding("triton").found == "RuntimeError: libcuda is odd"


def test_no_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    assert finding("triton").state == doctor.MISSING
    assert "pip install 'triton>=3.6'" in finding("triton").advice


def test_torch_cuda_that_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> bool:
        raise RuntimeError("driver too old")

    monkeypatch.setattr(torch.cuda, "is_available", fail)
    assert finding("GPU").state == doctor.BROKEN
    assert "driver too old" in finding("GPU").found


@pytest.mark.parametrize(
    ("gain", "found", "advice"),
    [(2.34, "2.3 times as fast as float32", ""), (0.97, "no gain", "on the CPU leave")],
)
def test_what_bfloat16_gains(
    monkeypatch: pytest.MonkeyPatch, gain: float, found: str, advice: str
) -> None:
    monkeypatch.setattr(doctor, "bfloat16_gain", lambda: gain)
    row = finding("bfloat16")
    assert row.state == doctor.OK
    assert row.found.startswith(found) and row.advice.startswith(advice)
    assert bool(row.advice) == bool(advice)


def test_the_gain_of_bfloat16_is_measured_and_draws_nothing() -> None:
    state = torch.get_rng_state()
    assert 0.01 < doctor.bfloat16_gain() < 100
    assert torch.equal(torch.get_rng_state(), state)


def test_no_rich_prints_plain_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "bfloat16_gain", lambda: 2.0)
    monkeypatch.setitem(sys.modules, "rich.table", None)
    doctor.main()
    assert capsys.readouterr().out.strip() == doctor.report().text()
