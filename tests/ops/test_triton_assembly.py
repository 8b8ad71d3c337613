"""What the Triton kernels become for GPUs that need not be here: compiled ahead, assembly read.

The launchers are given meta tensors, so a kernel that had a value read back to the host would fail.
"""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fastdiff.ops.biased_sum import triton as biased_sum
from fastdiff.ops.denoise_step import triton as denoise_step
from fastdiff.ops.philox_normal import triton as philox_normal
from fastdiff.ops.q_sample import triton as q_sample

CAPABILITIES = (80, 90, 100)
THREADS = 128
TYPES = {
    torch.int64: "*i64",
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
}
f32, bf16 = torch.float32, torch.bfloat16


@dataclass
class Launch:
    """Stands in for a kernel, and keeps what its launcher asks for."""

    kernel: Any
    arguments: tuple[Any, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return self.launch

    def launch(self, *arguments: Any, **options: Any) -> None:
        self.arguments, self.options = arguments, options


@dataclass(frozen=True)
class Code:
    """A compiled kernel: PTX, how often each SASS instruction occurs, bytes of memory by kind."""

    block: int
    ptx: str
    sass: Counter[str]
    memory: dict[str, int]

    def count(self, *instructions: str) -> int:
        return sum(n for name, n in self.sass.items() if name.startswith(instructions))


def recorded(module: Any, op: str, *arguments: Any) -> Launch:
    launch = Launch(getattr(module, f"_{op}"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, f"_{op}", launch)
        getattr(module, op)(*arguments)
    return launch


def specialised(launch: Launch) -> tuple[dict[str, str], dict[str, Any], dict[Any, Any]]:
    """Triton's own rule: what is None, 1 or a multiple of 16 is compiled in; a launch reuses it."""
    params = launch.kernel.params
    constexprs = [launch.options[p.name] for p in params if p.is_constexpr]
    signature, constants, attributes = {}, {}, {}
    for i, (p, value) in enumerate(zip(params, [*launch.arguments, *constexprs], strict=True)):
        number = value.data_ptr() if isinstance(value, Tensor) else value
        special = type(number) is int and not p.do_not_specialize
        if p.is_constexpr or value is None or (special and number == 1):
            signature[p.name], constants[p.name] = "constexpr", value
            continue
        kind = "fp32" if isinstance(value, float) else "i32"
        signature[p.name] = p.annotation_type or TYPES.get(getattr(value, "dtype", None), kind)
        if special and number % 16 == 0:
            attributes[(i,)] = [["tt.divisibility", 16]]
    return signature, constants, attributes


def compiled(launch: Launch, capability: int, **changed: bool) -> Code:
    constexprs = [p.name for p in launch.kernel.params if p.is_constexpr]
    options = {k: v for k, v in launch.options.items() if k not in constexprs} | changed
    source = ASTSource(launch.kernel, *specialised(launch))
    kernel = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    assert kernel.metadata.num_warps * 32 == THREADS
    instructions = re.findall(
        r"^[^\t\n]*\t(?:@!?U?P\w+ )?([A-Z][A-Z0-9_.]*)", kernel.asm["sass"], re.MULTILINE
    )
    assert {"EXIT", "BRA"} <= set(instructions), "the disassembly reads differently now"
    return Code(
        launch.options.get("BLOCK", 0),
        kernel.asm["ptx"],
        Counter(instructions),
        memory_use(kernel.asm["cubin"]),
    )


def memory_use(cubin: bytes) -> dict[str, int]:
    with TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", str(file)]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {kind: int(n) for kind, n in re.findall(r"\b([A-Z]+):(\d+)", text)}


def meta(*shape: int, dtype: torch.dtype = f32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def integers(*shape: int) -> Tensor:
    return meta(*shape, dtype=torch.int64)


def normal_launch(dtype: torch.dtype, stream: int = 0, side: int = 64) -> Launch:
    return recorded(
        philox_normal,
        "philox_normal",
        [64, 3, side, side],
        integers(),
        integers(64),
        integers(64),
        stream,
        dtype,
    )


def q_sample_launch(side: int = 64) -> Launch:
    x, N, table = meta(64, 3, side, side), integers(64), meta(1000, 4, dtype=torch.float64)
    return recorded(q_sample, "q_sample", x, N, table, None, integers(), N, N, 0, True, True)


def step_launch(
    dtype: torch.dtype,
    out_dtype: torch.dtype,
    *,
    N: int = 64,
    side: int = 64,
    S: int = 1000,
    scale: float = 1.0,
    clip: float = 1.0,
    stream: int = 0,
    everything: bool = False,
) -> Launch:
    """Noise drawn in the kernel; `everything` adds guidance, multistep, variance and outputs."""
    x = meta(N, 3, side, side, dtype=dtype)
    out = meta(N, 3 + 3 * everything, side, side, dtype=out_dtype)
    return recorded(
        denoise_step,
        "denoise_step",
        x,
        out,
        integers(N),
        meta(S, 9, dtype=torch.float64),
        out if everything else None,
        scale,
        clip,
        None,
        x if everything else None,
        None,
        integers(),
        integers(N),
        stream,
        everything,
        out_dtype if everything else None,
    )


def sum_launch(dtype: torch.dtype, layout: torch.memory_format) -> Launch:
    x = meta(64, 128, 32, 32, dtype=dtype).contiguous(memory_format=layout)
    # No bias: whether its loads are of 16 bytes depends on triton's version.
    return recorded(biased_sum, "biased_sum_", x, None, x, 0.5)


# A launch, and the bytes that each element makes the kernel read and write.
# Large samples take blocks of 2048 elements, others of 1024.
KERNELS: dict[str, tuple[Callable[[], Launch], int, int]] = {
    "normals": (lambda: normal_launch(f32), 0, 4),
    "normals, large": (lambda: normal_launch(f32, side=128), 0, 4),
    "normals bf16": (lambda: normal_launch(bf16), 0, 2),
    "q_sample": (q_sample_launch, 4, 12),
    "q_sample, large": (lambda: q_sample_launch(128), 4, 12),
    "step": (lambda: step_launch(f32, f32), 8, 4),
    "step, large": (lambda: step_launch(f32, f32, side=128), 8, 4),
    "step bf16": (lambda: step_launch(bf16, bf16), 4, 2),
    "step bf16, large": (lambda: step_launch(bf16, bf16, side=128), 4, 2),
    "sum": (lambda: sum_launch(f32, torch.channels_last), 8, 4),
    "sum bf16": (lambda: sum_launch(bf16, torch.channels_last), 4, 2),
    "sum bf16, contiguous": (lambda: sum_launch(bf16, torch.contiguous_format), 4, 2),
    "step, everything": (lambda: step_launch(f32, bf16, everything=True), 14, 10),
}


@cache
def code(name: str, capability: int) -> Code:
    return compiled(KERNELS[name][0](), capability)


every_kernel = pytest.mark.parametrize("name", KERNELS)
every_gpu = pytest.mark.parametrize("capability", CAPABILITIES)


@every_gpu
@every_kernel
def test_every_access_to_an_image_is_of_16_bytes(name: str, capability: int) -> None:
    _, read, written = KERNELS[name]
    built = code(name, capability)
    accesses = built.block // THREADS / 16
    assert built.count("LDG.E.128") == read * accesses
    assert built.count("STG.E.128") == built.count("STG") == written * accesses


@every_gpu
@every_kernel
def test_registers_suffice(name: str, capability: int) -> None:
    """No spills and no stack; room for eight blocks an SM, for four of twice the work."""
    built = code(name, capability)
    assert built.memory["LOCAL"] == built.memory["STACK"] == built.count("LDL", "STL") == 0
    assert built.memory["REG"] <= 128 if "large" in name else 64 + 16 * ("everything" in name)


@triton.jit
def _roots(x, out, COUNT: tl.constexpr):
    at = tl.arange(0, COUNT)
    tl.store(out + at, tl.sqrt_rn(tl.load(x + at)))


@cache
def fused_in_roots(capability: int, block: int) -> int:
    """FFMA in the correctly rounded square roots of a tile, one for each two normals."""
    launch = Launch(_roots, (meta(block), meta(block)), {"COUNT": block // 2})
    return compiled(launch, capability, enable_fp_fusion=False).count("FFMA")


def assert_nothing_fused(built: Code, capability: int) -> None:
    """Every float32 product and sum is rounded by itself.

    In PTX none is fused, and each says `.rn`, which forbids the assembler to fuse it. The SASS then
    holds the fused operations inside the square roots, as many as those roots hold alone.
    """
    assert not re.findall(r"\bfma\.|\bmad\.\w*\.?f", built.ptx)
    arithmetic = re.findall(r"\b(?:add|sub|mul)\.\S*f32(?:x2)?\b", built.ptx)
    assert len(arithmetic) > 100
    assert {name.split(".")[1] for name in arithmetic} == {"rn"}
    assert built.count("FFMA") == fused_in_roots(capability, built.block)


@every_gpu
@pytest.mark.parametrize("name", [name for name in KERNELS if not name.startswith("sum")])
def test_noise_is_not_fused(name: str, capability: int) -> None:
    assert_nothing_fused(code(name, capability), capability)


@pytest.mark.parametrize("name", ["normals", "step"])
def test_fusion_would_be_seen(name: str) -> None:
    built = compiled(KERNELS[name][0](), 90, enable_fp_fusion=True)
    assert "fma.rn.f32" in built.ptx
    assert built.count("FFMA") >= fused_in_roots(90, built.block) + 8
    with pytest.raises(AssertionError):
        assert_nothing_fused(built, 90)


def test_low_precision_is_rounded_to_nearest() -> None:
    roundings = re.findall(r"cvt\.\S*bf16\S*\.f32", code("step bf16", 90).ptx)
    assert set(roundings) == {"cvt.rn.bf16x2.f32"}


def test_nothing_is_compiled_anew_by_step_seed_or_coefficient() -> None:
    one = specialised(step_launch(f32, f32))
    for change in ({"N": 1}, {"S": 1}, {"scale": 7.5}, {"clip": 0.3}, {"stream": 1}):
        assert specialised(step_launch(f32, f32, **change)) == one, change  # type: ignore[arg-type]
    assert specialised(normal_launch(f32, stream=1)) == specialised(normal_launch(f32))
