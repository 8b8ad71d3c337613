"""What the CUDA kernels became in the library as it is built: resources and instructions.

cuobjdump, which triton brings, reads them; no GPU is asked.
"""

from __future__ import annotations

import re
import subprocess
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cache
from importlib import import_module, util
from pathlib import Path

import pytest

from fastdiff.ops import _library

ARCHITECTURES = {"sm_80", "sm_90a", "sm_100"}
REGISTERS = 65536  # of a multiprocessor
STATIC_SHARED = 48 * 1024  # bytes that need no leave
THREADS = 256
# Blocks that a multiprocessor is to hold at once, by __launch_bounds__; the attention kernels' is
# their shape's last number.
RESIDENT = {"once": 3, "statistics": 3, "output": 3, "merge_parts": 1}
RESIDENT |= {f"gradient_{name}": 2 for name in ("once", "sums", "runs", "output")}
RESIDENT |= {"gradient_merge": 1, "gradient_parameters": 1}
ELEMENT = {"float": 4, "__half": 2, "__nv_bfloat16": 2}
INSTRUCTIONS = re.compile(r"\b(LDG|LDGSTS|HMMA|LDL|STL)\b((?:\.\w+)*)")

Kernel = tuple[str, str]  # architecture and name, such as ("sm_80", "once<float, 4, 1, true>")


def has_cuda() -> bool:
    if _library.native_path() is None:
        return False
    return bool(import_module("fastdiff._build_info").build_info()["cuda_architectures"])


pytestmark = pytest.mark.skipif(not has_cuda(), reason="the library is built without CUDA kernels")


def dump(option: str) -> Iterator[tuple[str, str, str]]:
    """Architecture, mangled name and line, for every line that belongs to a kernel."""
    found = util.find_spec("triton")
    assert found is not None and found.origin is not None
    tool = Path(found.origin).parent / "backends/nvidia/bin/cuobjdump"
    with subprocess.Popen(
        [tool, option, str(_library.native_path())], stdout=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None
        architecture = name = ""
        for line in run.stdout:
            if line.startswith("arch = "):
                architecture = line.split()[-1]
            elif match := re.search(r"Function ?:? (\w+)", line):
                name = match.group(1)
            elif name:
                yield architecture, name, line


@cache
def plain(mangled: str) -> str:
    """Without namespaces and parameters."""
    said = subprocess.run(["c++filt", mangled], capture_output=True, text=True, check=True).stdout
    said = re.sub(r"fastdiff::|\(anonymous namespace\)::|attention::|^void ", "", said)
    said = re.sub(r"^void ", "", said)
    return said.partition("(")[0].replace("> >", ">>").strip()


@cache
def resources() -> dict[Kernel, dict[str, int]]:
    return {
        (architecture, plain(name)): {k: int(v) for k, v in re.findall(r"([A-Z]+):(\d+)", line)}
        for architecture, name, line in dump("-res-usage")
        if "REG:" in line
    }


@cache
def instructions() -> dict[Kernel, Counter[str]]:
    """How often each of the instructions looked for occurs, and how many access 16 bytes."""
    counts: dict[Kernel, Counter[str]] = defaultdict(Counter)
    for architecture, name, line in dump("-sass"):
        counter = counts[architecture, plain(name)]
        if (match := INSTRUCTIONS.search(line)) is not None:
            counter[match.group(1)] += 1
            counter["16 bytes"] += match.group(2).endswith(".128")
    return counts


def base(name: str) -> str:
    return name.partition("<")[0]


def test_every_kernel_is_there_for_every_architecture() -> None:
    sources = Path(__file__).parents[2].glob("csrc/*/*")
    code = "".join(path.read_text() for path in sources if path.suffix in (".cu", ".h"))
    declared = re.findall(r"__global__ void(?: __launch_bounds__\([^()]*\))?\s+(\w+)\(", code)
    by_architecture = defaultdict(set)
    for architecture, name in resources():
        by_architecture[architecture].add(name)
    assert by_architecture.keys() == ARCHITECTURES
    assert len({frozenset(names) for names in by_architecture.values()}) == 1
    assert {base(name) for name in by_architecture["sm_80"]} == set(declared)


def test_no_kernel_has_a_stack_or_spills() -> None:
    for kernel, used in resources().items():
        assert used["STACK"] == used["LOCAL"] == 0, kernel
        assert not instructions()[kernel]["LDL"] and not instructions()[kernel]["STL"], kernel


def test_registers_and_shared_memory_fit_the_launch() -> None:
    for (architecture, name), used in resources().items():
        resident = RESIDENT.get(base(name)) or int(re.findall(r"\d+", name)[-1])
        registers = -(-used["REG"] // 8) * 8  # given out by eights
        assert registers * THREADS * resident <= REGISTERS, (architecture, name)
        assert used["SHARED"] <= STATIC_SHARED, (architecture, name)


def test_vector_kernels_load_16_bytes_at_a_time() -> None:
    of_vectors = set()
    for kernel, counts in instructions().items():
        wide = counts["16 bytes"]
        if base(kernel[1]) in ("one_head", "many_heads"):
            assert wide, kernel
        elif match := re.match(r"(\w+)<(\w+), (\d+)", kernel[1]):
            if ELEMENT[match.group(2)] * int(match.group(3)) == 16:
                of_vectors.add(match.group(1))
                assert wide, kernel
    assert of_vectors == {name for name, resident in RESIDENT.items() if resident > 1}


def test_attention_multiplies_on_tensor_cores() -> None:
    attention = [k for k in instructions() if base(k[1]) in ("one_head", "many_heads")]
    assert attention and all(instructions()[kernel]["HMMA"] > 0 for kernel in attention)
    assert not any(instructions()[k]["HMMA"] for k in instructions() if k not in attention)
