"""The CUDA sources compiled for the CPU (cuda_on_cpu.h), and their kernels called on tensors."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
FLAGS = ["-std=c++17", "-O2", "-g1", "-fPIC", "-fvisibility=hidden", "-fno-strict-aliasing"]
FLAGS += ["-Wall", "-Wno-unknown-pragmas", "-Wno-psabi", f"-I{HERE}"]
# Every access as the source has it, reported to memory.cpp; what is not initialised is no zero.
CHECKED = ["-fno-tree-vectorize", "-fsanitize=thread,undefined", "-fno-sanitize-recover=all"]
CHECKED += ["--param", "tsan-instrument-func-entry-exit=0", "-ftrivial-auto-var-init=pattern"]
DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


class KernelError(Exception):
    """What a launch said."""


@dataclass(frozen=True)
class Gpu:
    multiprocessors: int
    shared: int
    clusters: bool


H200 = Gpu(132, 227 * 1024, True)
A100 = Gpu(108, 163 * 1024, False)


def compiler() -> str:
    return os.environ.get("CXX", "c++")


def cuda_sources() -> list[Path]:
    listed = (ROOT / "csrc/sources.txt").read_text().split()
    return [ROOT / "csrc" / source for source in listed if source.endswith(".cu")]


def compiled(source: Path, folder: Path) -> Path:
    target = folder / f"{source.relative_to(ROOT)}.o".replace("/", "-")
    checked = source.suffix == ".cu"
    command = [*compiler().split(), *FLAGS, *(CHECKED if checked else []), "-x", "c++"]
    subprocess.run([*command, "-c", str(source), "-o", str(target)], check=True)
    return target


@cache
def path() -> Path:
    """The library; built anew where a source is younger."""
    sources = [*cuda_sources(), *HERE.glob("*.cpp"), *HERE.glob("*.cu")]
    folder = ROOT / "build/cuda_on_cpu"
    library = folder / "kernels.so"
    read = [
        p for d in (ROOT / "csrc", HERE) for p in d.rglob("*") if p.suffix in (".h", ".cpp", ".cu")
    ]
    changed = max(p.stat().st_mtime for p in [*read, Path(__file__)])
    if library.is_file() and library.stat().st_mtime > changed:
        return library
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(lambda source: compiled(source, folder), sources))
    fresh = folder / "linking.so"
    command = [*compiler().split(), "-shared", "-Wl,-z,defs", *map(str, objects), "-ldl"]
    subprocess.run([*command, "-o", str(fresh)], check=True)
    return fresh.replace(library)


@cache
def library() -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(path()))
    norms = ("group_norm_silu", "group_norm_silu_gradient")
    for name in (*norms, "attention_block", "wrong_kernel"):
        getattr(loaded, name).restype = ctypes.c_char_p
    for name in norms:
        getattr(loaded, f"{name}_workspace").restype = ctypes.c_int64
    loaded.know_memory.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_bool]
    return loaded


@cache
def names() -> dict[int, str]:
    """The library's functions by their place in it."""
    command = ["nm", "--demangle", str(path())]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    lines = re.findall(r"^([0-9a-f]+) [tT] (.*)$", text, re.MULTILINE)
    return {int(place, 16): name.replace("(anonymous namespace)::", "") for place, name in lines}


def short(function: str) -> str:
    """Such as `once<float, 4, 1, true>`."""
    plain = function.removeprefix("void ").partition("(")[0].replace("> >", ">>")
    return re.sub(r"fastdiff::(attention::)?", "", plain)


def kernels(*templates: str) -> set[str]:
    """All that the library has of these templates."""
    return {k for k in map(short, names().values()) if k.partition("<")[0] in templates}


class Launch(NamedTuple):
    kernel: str
    blocks: int
    cluster: int


class Launched(ctypes.Structure):
    _fields_ = (("place", ctypes.c_ssize_t), ("blocks", ctypes.c_uint), ("cluster", ctypes.c_uint))


def launches() -> list[Launch]:
    """The kernels run on the last `device`, in order."""
    taken = (Launched * 64)()
    count = library().copy_launches(taken, len(taken))
    return [Launch(short(names()[t.place]), t.blocks, t.cluster) for t in taken[:count]]


def check(error: bytes | None) -> None:
    """Raises what a launch said, with the line of the source where it tells one."""
    if error is None:
        return
    text = error.decode()
    if at := re.search(r"\+(0x[0-9a-f]+)", text):
        command = ["addr2line", "-Cpie", str(path()), at[1]]
        lines = subprocess.run(command, capture_output=True, text=True).stdout
        text += ": " + lines.replace(f"{ROOT}/", "").strip()
    raise KernelError(text)


@contextmanager
def device(gpu: Gpu, given: list[Tensor], made: list[Tensor]) -> Iterator[None]:
    """A GPU whose memory holds these tensors alone; those that the kernels make are poisoned."""
    library().set_gpu(gpu.multiprocessors, gpu.shared, gpu.clusters)
    for tensor in made:
        torch.tensor([], dtype=torch.uint8).set_(tensor.untyped_storage()).fill_(0xFF)
    for tensor, written in [*((t, True) for t in given), *((t, False) for t in made)]:
        storage = tensor.untyped_storage()
        library().know_memory(storage.data_ptr(), storage.nbytes(), written)
    try:
        yield
    finally:
        library().forget_memory()


class ChannelVector(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("sample_stride", ctypes.c_int64),
        ("channel_stride", ctypes.c_int64),
        ("dtype", ctypes.c_int),
    )

    @staticmethod
    def of(v: Tensor | None) -> ChannelVector:
        if v is None:
            return ChannelVector()
        return ChannelVector(
            v.data_ptr(), v.stride(0) if v.dim() == 2 else 0, v.stride(-1), DTYPES[v.dtype]
        )


class GroupNormSiluParams(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "y", "mean", "rstd", "residual")),
        *((name, ChannelVector) for name in ("added", "weight", "bias", "scale", "shift")),
        *((name, ctypes.c_int64) for name in ("batch", "channels", "spatial", "groups")),
        ("eps", ctypes.c_double),
        ("dtype", ctypes.c_int),
        ("channels_last", ctypes.c_bool),
        ("silu", ctypes.c_bool),
        ("workspace", ctypes.c_void_p),
    )


def group_norm_silu(
    x: Tensor,
    groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    silu: bool = True,
    residual: Tensor | None = None,
    gpu: Gpu = H200,
) -> tuple[Tensor, Tensor, Tensor] | None:
    """y, mean and 1/std; None where the kernels do not cover these sizes."""
    N = x.shape[0]
    y, mean, rstd = torch.empty_like(x), torch.empty(N, groups), torch.empty(N, groups)
    vectors = (weight, bias, scale, shift, residual)
    params = group_norm_silu_params(x, groups, *vectors, eps, silu, y, mean, rstd)
    given = [x, *vectors]
    served = with_workspace("group_norm_silu", params, params, given, [y, mean, rstd], gpu)
    return (y, mean, rstd) if served else None


def group_norm_silu_params(
    x: Tensor,
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
    eps: float,
    silu: bool,
    y: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
) -> GroupNormSiluParams:
    by_channel = residual is not None and residual.dim() < x.dim()
    like_x, added = (None, residual) if by_channel else (residual, None)
    return GroupNormSiluParams(
        *(None if t is None else t.data_ptr() for t in (x, y, mean, rstd, like_x)),
        *(ChannelVector.of(v) for v in (added, weight, bias, scale, shift)),
        *(*x.shape[:2], x[0, 0].numel(), groups, eps),
        *(DTYPES[x.dtype], not x.is_contiguous(), silu),
    )


def with_workspace(
    op: str,
    params: ctypes.Structure,
    forward: GroupNormSiluParams,
    given: list[Tensor | None],
    made: list[Tensor],
    gpu: Gpu,
) -> bool:
    """Whether the kernels of `op` cover these sizes; `forward` is where its workspace is named."""
    library().set_gpu(gpu.multiprocessors, gpu.shared, gpu.clusters)
    size = getattr(library(), f"{op}_workspace")(ctypes.byref(params))
    if size < 0:
        return False
    workspace = torch.empty(size, dtype=torch.uint8)
    forward.workspace = workspace.data_ptr()
    with device(gpu, [t for t in given if t is not None], [*made, workspace]):
        check(getattr(library(), op)(ctypes.byref(params)))
    return True


class GroupNormSiluGradientParams(ctypes.Structure):
    _fields_ = (
        ("forward", GroupNormSiluParams),
        *((name, ctypes.c_void_p) for name in ("grad", "of_x", "of_weight", "of_bias")),
        *((name, ctypes.c_void_p) for name in ("of_scale", "of_shift", "of_added")),
    )


def group_norm_silu_gradient(
    grad: Tensor,
    x: Tensor,
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    silu: bool,
    residual: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    *,
    gpu: Gpu = H200,
) -> list[Tensor] | None:
    """As fastdiff::group_norm_silu_gradient; None where the kernels do not cover these sizes."""
    N, C = x.shape[:2]
    vectors = (weight, bias, scale, shift, residual)
    forward = group_norm_silu_params(x, groups, *vectors, 0.0, silu, None, mean, rstd)
    made = [torch.empty_like(x), *(torch.empty(C) for _ in range(2))]
    made += [torch.empty(N, C) for _ in range(3)]
    params = GroupNormSiluGradientParams(forward, grad.data_ptr(), *(t.data_ptr() for t in made))
    given = [grad, x, *vectors, mean, rstd]
    op = "group_norm_silu_gradient"
    return made if with_workspace(op, params, params.forward, given, made, gpu) else None


class AttentionBlockParams(ctypes.Structure):
    _fields_ = (
        ("x", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        ("norm_weight", ChannelVector),
        ("norm_bias", ChannelVector),
        *((name, ctypes.c_void_p) for name in ("query", "query_bias", "key", "value")),
        *((name, ctypes.c_void_p) for name in ("value_bias", "proj", "proj_bias")),
        ("batch", ctypes.c_int64),
        *((name, ctypes.c_int) for name in ("tokens", "channels", "groups", "heads")),
        ("eps", ctypes.c_float),
        ("residual_scale", ctypes.c_float),
        ("dtype", ctypes.c_int),
    )


def attention_block(
    x: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    qkv_weight: Tensor,
    qkv_bias: Tensor | None,
    proj_weight: Tensor,
    proj_bias: Tensor | None,
    groups: int,
    eps: float,
    heads: int,
    residual_scale: float,
    *,
    gpu: Gpu = H200,
) -> Tensor:
    """As fastdiff::attention_block_fused: `qkv_weight` holds [C, C] where it comes folded."""
    N, C = x.shape[:2]
    folded = qkv_weight.shape[0] == C

    def row(v: Tensor | None, index: int) -> int | None:
        return None if v is None or (folded and index > 0) else v[index:].data_ptr()

    y = torch.empty_like(x)
    params = AttentionBlockParams(
        *(x.data_ptr(), y.data_ptr(), ChannelVector.of(norm_weight), ChannelVector.of(norm_bias)),
        *(row(qkv_weight, 0), row(qkv_bias, 0), row(qkv_weight, C), row(qkv_weight, 2 * C)),
        *(row(qkv_bias, 2 * C), row(proj_weight, 0), row(proj_bias, 0)),
        *(N, x[0, 0].numel(), C, groups, heads, eps, residual_scale, DTYPES[x.dtype]),
    )
    tensors = (x, norm_weight, norm_bias, qkv_weight, qkv_bias, proj_weight, proj_bias)
    with device(gpu, [t for t in tensors if t is not None], [y]):
        check(library().attention_block(ctypes.byref(params)))
    return y
