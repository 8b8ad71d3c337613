"""denoise_step against its formula in float64, one sample and one element at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastdiff.ops.denoise_step import COLUMNS, denoise_step, predict_x_start
from fastdiff.ops.philox_normal import philox_normal

S = 7


def normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


TABLE = normals(S, len(COLUMNS), seed=99)
TABLE[:, COLUMNS.index("sigma")] = TABLE[:, COLUMNS.index("sigma")].abs()


def inputs(shape: tuple[int, ...] = (3, 2, 5, 3), learned: bool = False) -> dict[str, Any]:
    N, C, *rest = shape
    return {
        "x_t": normals(*shape, seed=1),
        "model_output": normals(N, 2 * C if learned else C, *rest, seed=2),
        "step": (torch.arange(N) * 5 + 2) % S,
        "table": TABLE,
        "noise": normals(*shape, seed=3),
    }


def expected(
    x_t: Tensor,
    model_output: Tensor,
    step: Tensor,
    table: Tensor,
    *,
    clip: float | None = None,
    threshold: Tensor | None = None,
    x_start_before: Tensor | None = None,
    noise: Tensor | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The formula of NOTES.md in Python floats."""
    x_prev, pred = np.empty(x_t.shape), np.empty(x_t.shape)
    C = x_t.shape[1]
    for at in np.ndindex(*x_t.shape):
        row = dict(zip(COLUMNS, table[step[at[0]]].tolist(), strict=True))
        x, out = float(x_t[at]), float(model_output[at])
        x_0 = row["k_x"] * x + row["k_o"] * out
        if threshold is not None:
            x_0 /= float(threshold[at[0]])
        if clip is not None:
            x_0 = min(max(x_0, -clip), clip)
        sigma = row["sigma"]
        if model_output.shape[1] == 2 * C:
            raw = float(model_output[(at[0], at[1] + C, *at[2:])])
            sigma *= math.exp((row["l_0"] + row["l_v"] * raw) / 2)
        value = row["c_0"] * x_0 + row["c_x"] * x + row["c_o"] * out
        value += row["c_1"] * float(x_start_before[at]) if x_start_before is not None else 0
        value += sigma * float(noise[at]) if noise is not None else 0
        x_prev[at], pred[at] = value, x_0
    return x_prev, pred


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "clip": {"clip": 0.8},
    "threshold": {"clip": 1.0, "threshold": torch.tensor([1.0, 1.7, 2.5])},
    "multistep": {"x_start_before": normals(3, 2, 5, 3, seed=4)},
    "no noise": {"noise": None},
}


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_formula(case: str, learned: bool) -> None:
    arguments = inputs(learned=learned) | CASES[case]
    x_prev, pred = denoise_step(**arguments)
    wanted_prev, wanted_pred = expected(**arguments)
    np.testing.assert_allclose(x_prev, wanted_prev, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(pred, wanted_pred, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    arguments = inputs(learned=True)
    for name in ("x_t", "model_output", "noise"):
        arguments[name] = arguments[name].to(dtype)
    x_prev, pred = denoise_step(**arguments, clip=0.8)
    exact, exact_pred = (torch.tensor(a) for a in expected(**arguments, clip=0.8))
    assert x_prev.dtype == pred.dtype == dtype
    unit, slack = torch.finfo(dtype).eps / 2 * 1.01, 40 * torch.finfo(torch.float32).eps
    assert ((x_prev.double() - exact).abs() <= unit * exact.abs() + slack).all()
    assert ((pred.double() - exact_pred).abs() <= unit * exact_pred.abs() + slack).all()


@pytest.mark.parametrize("shape", [(1, 1, 3, 3), (2, 3, 7), (3, 4), (0, 3, 4, 4)])
def test_shapes(shape: tuple[int, ...]) -> None:
    arguments = inputs(shape)
    wanted, _ = expected(**arguments)
    np.testing.assert_allclose(denoise_step(**arguments)[0], wanted, rtol=1e-12, atol=1e-13)


def test_memory_formats_agree_and_are_kept() -> None:
    arguments = inputs()
    plain, _ = denoise_step(**arguments)
    for name in ("x_t", "model_output", "noise"):
        arguments[name] = arguments[name].to(memory_format=torch.channels_last)
    last, pred = denoise_step(**arguments)
    assert torch.equal(plain, last)
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert pred.is_contiguous(memory_format=torch.channels_last)
    arguments["x_t"] = torch.stack([arguments["x_t"]] * 2, -1)[..., 0]
    assert torch.equal(plain, denoise_step(**arguments)[0])


def test_noise_made_inside_is_philox_normal_at_draw_step_plus_one() -> None:
    arguments = inputs() | {"noise": None}
    index = torch.tensor([5, 0, 2**33])
    z = philox_normal((3, 2, 5, 3), 12, sample_index=index, draw=arguments["step"] + 1, stream=2)
    inside, _ = denoise_step(**arguments, seed=12, sample_index=index, stream=2)
    outside, _ = denoise_step(**(arguments | {"noise": z}))
    assert torch.equal(inside, outside)
    assert not torch.equal(inside, denoise_step(**arguments)[0])


def test_infinities_and_nans_pass_through_their_own_elements() -> None:
    arguments = inputs()
    clean, _ = denoise_step(**arguments)
    arguments["x_t"][0, 0, 0, 0] = math.nan
    arguments["model_output"][1, 1, 2, 1] = math.inf
    x_prev, pred = denoise_step(**arguments, clip=None)
    assert x_prev[0, 0, 0, 0].isnan() and pred[0, 0, 0, 0].isnan()
    assert not x_prev[1, 1, 2, 1].isfinite() and not pred[1, 1, 2, 1].isfinite()
    assert int((x_prev != clean).sum()) == 2
    assert denoise_step(**arguments, clip=1.0)[1][0, 0, 0, 0].isnan()


def test_predict_x_start_is_the_unclipped_first_line() -> None:
    arguments = inputs(learned=True)
    x_t, out, step = arguments["x_t"], arguments["model_output"], arguments["step"]
    _, pred = expected(x_t, out, step, TABLE)
    np.testing.assert_allclose(predict_x_start(x_t, out, step, TABLE), pred, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", ["x_t", "model_output"])
def test_a_gradient_is_refused(name: str) -> None:
    arguments = inputs()
    arguments[name].requires_grad_()
    with pytest.raises(NotImplementedError, match="denoise_step has no gradient"):
        denoise_step(**arguments)[0].sum().backward()


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        ({"model_output": normals(3, 3, 5, 3)}, ValueError, r"\[3, 2, 5, 3\], or \[3, 4, 5, 3\]"),
        ({"step": torch.tensor([0, 1])}, ValueError, r"step must be \[3\]"),
        ({"step": torch.tensor([0, 1, S])}, ValueError, r"step must lie in 0..6.*got 0..7"),
        ({"step": torch.tensor([0, -1, 2])}, ValueError, r"got -1..2"),
        ({"step": torch.zeros(3)}, TypeError, "step must be int64"),
        ({"table": TABLE.float()}, ValueError, r"table must be float64 \[S, 9\]"),
        ({"table": TABLE[:, :6]}, ValueError, r"got torch.float64 \[7, 6\]"),
        ({"noise": normals(3, 2)}, ValueError, "noise must have x_t's shape"),
        ({"x_start_before": normals(3, 2)}, ValueError, "x_start_before must have x_t's shape"),
        ({"threshold": torch.ones(3, 1)}, ValueError, r"threshold must be \[3\]"),
        ({"clip": 0.0}, ValueError, "clip must be positive or None"),
        ({"sample_index": torch.tensor([0, 1])}, ValueError, r"sample_index must be \[3\]"),
        ({"seed": -5}, ValueError, "seed must lie in"),
        ({"x_t": torch.zeros(3, 2, 5, 3, dtype=torch.int64)}, ValueError, "x_t must be floating"),
        ({"table": TABLE.to("meta")}, ValueError, "must share a device; they lie on cpu, meta"),
    ],
)  # fmt: skip
def test_bad_arguments_are_refused(
    change: dict[str, Any], error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        denoise_step(**(inputs() | change))


def strided(x: Tensor) -> Tensor:
    return torch.stack([x] * 2, -1)[..., 0]


def channels_last(x: Tensor) -> Tensor:
    return x.to(memory_format=torch.channels_last)


@pytest.mark.parametrize("of_x", [Tensor.contiguous, channels_last, strided])
@pytest.mark.parametrize("of_out", [Tensor.contiguous, channels_last, strided])
@pytest.mark.parametrize("learned", [False, True])
def test_opcheck(
    of_x: Callable[[Tensor], Tensor], of_out: Callable[[Tensor], Tensor], learned: bool
) -> None:
    a = inputs(learned=learned)
    x, out = of_x(a["x_t"].float()), of_out(a["model_output"].float())
    op, index = torch.ops.fastdiff.denoise_step.default, torch.arange(3)
    scale, before = torch.ones(3), torch.zeros_like(x)
    for args in (
        (x, out, a["step"], TABLE, 1.0, scale, before, None, 7, index, 0),
        (x, out, a["step"], TABLE, None, None, None, a["noise"], 7, None, 0),
    ):
        torch.library.opcheck(op, args, test_utils=("test_schema", "test_faketensor"))
    torch.library.opcheck(op, args)
