"""DESIGN's "who may import whom", read from the source, and what `import fastdiff` needs."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import fastdiff

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "fastdiff").rglob("*.py"))

# A part may import parts of lower rank, and itself. A part that is not listed fails the test.
RANK = {
    "_version": 0,
    "_files": 0,
    "ranks": 0,
    "ops": 1,
    "schedules": 1,
    "images": 1,
    "shards": 2,
    "diffusion": 2,
    "losses": 3,
    "timestep_samplers": 3,
    "learned_schedule": 4,
    "models": 3,
    "samplers": 5,
    "engine": 4,
    "likelihood": 6,
    "checkpoints": 7,
    "training": 8,
    "evaluation": 9,
    "compat": 9,
    "doctor": 9,
    "cli": 10,
    "__main__": 11,
}
# `UNet.from_pretrained` is the one call upward, made where it is called and not at import.
LAZILY_UPWARD = {("models", "checkpoints")}
LAZY = {
    "safetensors", "PIL", "rich", "click", "triton", "diffusers", "scipy", "yaml", "tensorboard",
}  # fmt: skip


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path, *, eager: bool = False) -> Iterator[str]:
    """The absolute names of all modules that `path` imports; `eager`: those at import alone."""
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    tree = ast.parse(path.read_text())
    skipped = set()
    if eager:
        for node in ast.walk(tree):
            lazy = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
            if lazy or typing_only:
                skipped |= set(ast.walk(node))
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def part(module: str) -> str | None:
    pieces = module.split(".")
    return pieces[1] if pieces[0] == "fastdiff" and len(pieces) > 1 else None


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_nothing_imports_upward(path: Path) -> None:
    own = part(module_name(path))
    if own is None:  # the package's face imports every part
        return
    assert own in RANK, f"give fastdiff.{own} a rank in this test"
    eager = set(imports(path, eager=True))
    for imported in imports(path):
        other = part(imported)
        if (own, other) in LAZILY_UPWARD and imported not in eager:
            continue
        if other is None or other in (own, "__version__"):
            continue
        assert other in RANK, f"give fastdiff.{other} a rank in this test"
        assert RANK[other] < RANK[own], f"{own} may not import {imported}"


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_optional_libraries_are_imported_where_they_are_used(path: Path) -> None:
    if part(module_name(path)) == "cli" or path.name == "triton.py":
        return
    if module_name(path).startswith("fastdiff.compat.diffusers"):  # it is what they stand in for
        return
    eager = {name.split(".")[0] for name in imports(path, eager=True)}
    assert not eager & LAZY


@pytest.mark.parametrize(
    "path", [p for p in FILES if p.parent.parent.name == "ops"], ids=module_name
)
def test_ops_import_torch_and_the_op_library_alone(path: Path) -> None:
    allowed = {"torch", "triton", "fastdiff", *sys.stdlib_module_names}
    if path.name != "triton.py":
        allowed -= {"triton"}
    for name in imports(path):
        assert name.split(".")[0] in allowed, name
        if path.name == "reference.py" and name.startswith("fastdiff"):
            assert name.rpartition(".")[0].endswith(".reference"), name
    if path.name == "__init__.py":
        assert not any(name.endswith(".triton") for name in imports(path, eager=True))


def test_import_needs_torch_and_numpy_alone() -> None:
    program = f"""
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {LAZY!r}:
            raise ModuleNotFoundError(f"blocked {{name}}", name=name)
sys.meta_path.insert(0, Block())
import fastdiff, fastdiff.ops
for name in fastdiff.__all__:
    getattr(fastdiff, name)
for name in ("DDPMScheduler", "DDIMScheduler", "DDIMInverseScheduler",
             "DPMSolverMultistepScheduler", "restore"):
    assert name in dir(fastdiff)
    try:
        getattr(fastdiff, name)
    except ImportError as error:
        assert "pip install diffusers" in str(error)
    else:
        raise AssertionError(name)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "name", ["likelihood.bits_per_dim", "losses.training_losses", "ops.q_sample", "models.UNet",
             "samplers.make_plan", "schedules.NoiseSchedule", "training.Trainer"],
)  # fmt: skip
def test_parts_are_attributes(name: str) -> None:
    program = f"import fastdiff; assert callable(fastdiff.{name})"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_part_of_the_public_api_is_an_attribute() -> None:
    listed = {path.stem for path in (ROOT / "fastdiff").iterdir() if path.stem in RANK}
    inside = {
        "_version",
        "_files",
        "ranks",
        "images",
        "shards",
        "compat",
        "doctor",
        "cli",
        "__main__",
    }
    assert set(dir(fastdiff)) >= listed - inside
