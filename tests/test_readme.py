"""What the README says in Python runs, and does what it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from benchmarks import render

README = Path(__file__).parents[1] / "README.md"


def test_the_readmes_python() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, str(README), "exec"), names)
    assert len(blocks) == 3
    assert names["images"].shape == (10, 1, 28, 28)
    assert torch.equal(names["x"], names["images"])


def test_the_readmes_figures_are_those_of_the_results() -> None:
    folders = {f.name: render.benches(f) for f in sorted(render.RESULTS.iterdir()) if f.is_dir()}
    part = f"{render.BEGIN}\n{render.summary(folders)}\n{render.END}"
    assert part in README.read_text(), "run python -m benchmarks.render"
