"""Law 6 for denoise_step: no silent gradient, in place or not, through Python or the dispatcher."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fastdiff.ops.denoise_step import COLUMNS, denoise_step

TABLE = torch.rand(5, len(COLUMNS), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
STEP = torch.tensor([4, 0, 2])
OPS = [torch.ops.fastdiff.denoise_step.default, torch.ops.fastdiff.denoise_step_.default]


def arguments(**changed: Tensor) -> list[Any]:
    """All that the op takes, in the schema's order; every tensor given but noise."""
    x = torch.linspace(-1, 1, 3 * 2 * 5 * 3).view(3, 2, 5, 3)
    given = {
        "x_t": x.clone(),
        "model_output": x.flip(0),
        "step": STEP,
        "table": TABLE,
        "uncond_output": x + 1,
        "guidance_scale": 2.0,
        "clip": 1.0,
        "threshold": torch.ones(3),
        "x_start_before": x.square(),
        "noise": None,
        "seed": torch.tensor(7),
        "sample_index": torch.arange(3),
        "stream": 0,
        "return_pred_x_start": True,
        "model_dtype": torch.bfloat16,
    }
    return list((given | changed).values())


@pytest.mark.parametrize("op", OPS, ids=str)
@pytest.mark.parametrize("name", ["x_t", "model_output", "uncond_output", "x_start_before"])
def test_a_gradient_is_refused(op: torch._ops.OpOverload, name: str) -> None:
    leaf = torch.ones(3, 2, 5, 3, requires_grad=True)
    changed = arguments(**{name: leaf * 1})
    with pytest.raises(NotImplementedError, match=r"fastdiff::denoise_step_? has no gradient"):
        op(*changed)[0].sum().backward()
    with torch.no_grad():
        op(*changed)


@pytest.mark.parametrize("in_place", [False, True])
def test_a_gradient_is_refused_in_python(in_place: bool) -> None:
    x_t, out = torch.ones(2, 3, 1, 4, 4, requires_grad=True).unbind()
    with pytest.raises(NotImplementedError, match="has no gradient; call it under"):
        denoise_step(x_t, out, STEP, TABLE, in_place=in_place).x_prev.sum().backward()


def test_autograd_sees_what_is_written_over() -> None:
    """A tensor kept for a backward pass cannot be changed in silence."""
    x = torch.ones(3, 1, 4, 4, requires_grad=True) * 1
    y = x.sin()
    with torch.no_grad():
        denoise_step(x, torch.ones_like(x), STEP, TABLE, in_place=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("op", OPS, ids=str)
def test_opcheck(op: torch._ops.OpOverload) -> None:
    torch.library.opcheck(op, tuple(arguments()))
    absent = dict.fromkeys(["uncond_output", "threshold", "x_start_before", "seed", "sample_index"])
    bare: dict[str, Any] = absent | {"noise": torch.ones(3, 2, 5, 3), "model_dtype": None}
    torch.library.opcheck(op, tuple(arguments(**bare)))


def test_under_inference_mode() -> None:
    with torch.inference_mode():
        made_there = arguments()
        x_prev = OPS[0](*made_there)[0]
        OPS[1](*made_there)
    assert torch.equal(made_there[0], x_prev)


def test_compiled_code_serves_every_step_and_seed() -> None:
    """Neither is a constant of the compilation: a sampler's loop compiles once."""
    frames = []

    def backend(graph: torch.fx.GraphModule, example: list[Tensor]) -> Any:
        frames.append(graph)
        return graph.forward

    @torch.compile(fullgraph=True, backend=backend)
    def run(x: Tensor, out: Tensor, step: Tensor, seed: Tensor) -> Tensor:
        options = {"seed": seed, "sample_index": torch.arange(3), "clip": 1.0}
        return denoise_step(x, out, step, TABLE, **options).x_prev

    x, out = torch.ones(2, 3, 1, 4, 4).unbind()
    results = [run(x, out, torch.full((3,), row), torch.tensor(row)) for row in range(5)]
    assert len(frames) == 1
    assert len({result.numpy().tobytes() for result in results}) == 5
