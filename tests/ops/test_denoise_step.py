"""denoise_step against its formula in float64, one sample and one element at a time."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastdiff.diffusion import DynamicThresholding
from fastdiff.ops import _library
from fastdiff.ops.denoise_step import COLUMNS, denoise_step, predict_x_start, reference
from fastdiff.ops.philox_normal import philox_normal
from fastdiff.ops.philox_normal import reference as philox_reference
from fastdiff.samplers import sample
from fastdiff.schedules import NoiseSchedule
from tests.judge import assert_close_by_law4

S = 7
HALF = torch.bfloat16
DRAWN = {"noise": None, "sample_index": torch.arange(3)}


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
    uncond_output: Tensor | None = None,
    guidance_scale: float = 1.0,
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
        if uncond_output is not None:
            uncond = float(uncond_output[at])
            out = uncond + guidance_scale * (out - uncond)
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
    "guidance": {"guidance_scale": 2.5, "clip": 0.8},
}


def case_inputs(case: str, learned: bool, shape: tuple[int, ...] = (3, 2, 5, 3)) -> dict[str, Any]:
    arguments = inputs(shape, learned) | CASES[case]
    if "guidance_scale" in arguments:
        arguments["uncond_output"] = normals(*arguments["model_output"].shape, seed=5)
    if "x_start_before" in arguments:
        arguments["x_start_before"] = normals(*shape, seed=4)
    return arguments


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_formula(case: str, learned: bool) -> None:
    arguments = case_inputs(case, learned)
    x_prev, pred, _ = denoise_step(**arguments, return_pred_x_start=True)
    wanted_prev, wanted_pred = expected(**arguments)
    np.testing.assert_allclose(x_prev, wanted_prev, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(pred, wanted_pred, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    arguments = inputs(learned=True)
    for name in ("x_t", "model_output", "noise"):
        arguments[name] = arguments[name].to(dtype)
    x_prev, pred, _ = denoise_step(**arguments, clip=0.8, return_pred_x_start=True)
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
    plain, *_ = denoise_step(**arguments)
    for name in ("x_t", "model_output", "noise"):
        arguments[name] = arguments[name].to(memory_format=torch.channels_last)
    last, pred, _ = denoise_step(**arguments, return_pred_x_start=True)
    assert torch.equal(plain, last)
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert pred.is_contiguous(memory_format=torch.channels_last)
    arguments["x_t"] = torch.stack([arguments["x_t"]] * 2, -1)[..., 0]
    assert torch.equal(plain, denoise_step(**arguments)[0])


def test_noise_made_inside_is_philox_normal_at_draw_step_plus_one() -> None:
    arguments = inputs() | {"noise": None}
    index = torch.tensor([5, 0, 2**33])
    z = philox_normal((3, 2, 5, 3), 12, sample_index=index, draw=arguments["step"] + 1, stream=2)
    inside, *_ = denoise_step(**arguments, seed=12, sample_index=index, stream=2)
    outside, *_ = denoise_step(**(arguments | {"noise": z}))
    assert torch.equal(inside, outside)
    assert not torch.equal(inside, denoise_step(**arguments)[0])


def strided(x: Tensor) -> Tensor:
    return torch.stack([x] * 2, -1)[..., 0]


def channels_last(x: Tensor) -> Tensor:
    return x.to(memory_format=torch.channels_last)


def crossed(x: Tensor) -> Tensor:
    """Spatial axes the other way round, which the native kernel leaves to the reference."""
    return x.mT.contiguous().mT


LAYOUTS = [Tensor.contiguous, channels_last, strided, crossed]


def by_reference(which: int, **arguments: Any) -> Tensor:
    names = [a.name for a in torch.ops.fastdiff.denoise_step.default._schema.arguments]
    absent = {"guidance_scale": 1.0, "stream": 0, "return_pred_x_start": True}
    values = [arguments.get(name, absent.get(name)) for name in names]
    return reference.denoise_step(*values)[which]


@pytest.mark.parametrize("state", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("output", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("case", [*CASES, "drawn"])
def test_the_native_kernel_by_law_4(
    case: str, learned: bool, output: torch.dtype, state: torch.dtype
) -> None:
    shape = (3, 2, 5, 7)
    arguments = case_inputs("clip" if case == "drawn" else case, learned, shape)
    for name, value in arguments.items():
        if name in ("model_output", "uncond_output"):
            arguments[name] = value.to(output)
        elif name in ("x_t", "noise", "x_start_before") and value is not None:
            arguments[name] = value.to(state)
    if case == "drawn":
        index = torch.tensor([5, 0, 2**33])
        arguments |= {"noise": None, "seed": torch.tensor(-3), "sample_index": index, "stream": 6}
    assert _library.native_kernel("denoise_step", "CPU")
    calls = _library.native_calls("denoise_step", "CPU")
    done = denoise_step(**arguments, return_pred_x_start=True, model_dtype=HALF)
    assert _library.native_calls("denoise_step", "CPU") == calls + 1
    names, values = list(arguments), list(arguments.values())
    for which, actual in enumerate(done):

        def plain(*tensors: Any, which: int = which) -> Tensor:
            dtype = torch.float64 if tensors[0].dtype == torch.float64 else HALF
            named = dict(zip(names, tensors, strict=True))
            return by_reference(which, **named, model_dtype=dtype)

        assert actual is not None
        assert_close_by_law4(actual, plain, *values)


@pytest.mark.parametrize("of_x", LAYOUTS)
@pytest.mark.parametrize("of_out", LAYOUTS)
@pytest.mark.parametrize("learned", [False, True])
def test_layouts_change_no_bit(
    of_x: Callable[[Tensor], Tensor], of_out: Callable[[Tensor], Tensor], learned: bool
) -> None:
    a = inputs((3, 5, 33, 35), learned)
    x, out = a["x_t"].float(), a["model_output"].float()
    options = {"clip": 1.0, "seed": 3, "sample_index": torch.arange(3), "stream": 1}
    options |= {"return_pred_x_start": True, "model_dtype": HALF}
    plain = denoise_step(x, out, a["step"], TABLE, **options)
    other = denoise_step(of_x(x), of_out(out), a["step"], TABLE, **options)
    for one, two in zip(plain, other, strict=True):
        if crossed in (of_x, of_out):
            torch.testing.assert_close(one, two)
        else:
            assert torch.equal(one, two)
        assert two.stride() == torch.empty_like(of_x(x)).stride()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_in_place_is_the_same_step(layout: Callable[[Tensor], Tensor]) -> None:
    arguments = inputs()
    arguments |= {name: arguments[name].float() for name in ("model_output", "noise")}
    x_t = layout(arguments.pop("x_t").float())
    options = {"return_pred_x_start": True, "model_dtype": HALF, "clip": 0.8}
    wanted = denoise_step(x_t, **arguments, **options)
    calls = _library.native_calls("denoise_step_", "CPU")
    done = denoise_step(x_t, **arguments, **options, in_place=True)
    assert _library.native_calls("denoise_step_", "CPU") == calls + (layout is not crossed)
    assert done.x_prev is x_t
    for one, two in zip(done, wanted, strict=True):
        assert torch.equal(one, two)


@settings(deadline=None)
@given(
    st.integers(-(2**63), 2**63 - 1),
    st.lists(st.integers(0, 2**48 - 1), min_size=1, max_size=3),
    st.lists(st.integers(1, 40), min_size=1, max_size=3),
    st.sampled_from([torch.contiguous_format, torch.channels_last]),
    st.booleans(),
)
def test_noise_bits(
    seed: int, samples: list[int], rest: list[int], layout: torch.memory_format, learned: bool
) -> None:
    """With sigma alone left of the row, x_prev is the noise itself."""
    shape, index = (len(samples), *rest), torch.tensor(samples)
    x = torch.zeros(shape)
    out = torch.zeros(shape[0], shape[1] * (1 + learned), *shape[2:])
    if x.ndim == 4:
        x = x.to(memory_format=layout)
    table = torch.zeros(3, len(COLUMNS), dtype=torch.float64)
    table[:, COLUMNS.index("sigma")] = 1
    step = torch.arange(len(samples)) % 3
    calls = _library.native_calls("denoise_step", "CPU")
    z = denoise_step(x, out, step, table, seed=torch.tensor(seed), sample_index=index).x_prev
    assert _library.native_calls("denoise_step", "CPU") == calls + 1
    wanted = philox_reference.philox_normal(
        list(shape), torch.tensor(seed), index, step + 1, 0, torch.float32
    )
    assert torch.equal(z.view(torch.int32), wanted.view(torch.int32))


def test_a_batch_of_256_is_256_batches_of_one() -> None:
    a, index = inputs((256, 3, 8, 8)), torch.arange(256) * 2**38
    x, out = a["x_t"].float(), a["model_output"].float()
    whole = denoise_step(x, out, a["step"], TABLE, seed=9, sample_index=index).x_prev
    for i in range(256):
        one = slice(i, i + 1)
        alone = denoise_step(
            x[one], out[one], a["step"][one], TABLE, seed=9, sample_index=index[one]
        )
        assert torch.equal(alone.x_prev, whole[one])


@pytest.mark.many_threads
def test_threads_change_no_bit() -> None:
    a, index = inputs((5, 3, 70, 70)), torch.arange(5)
    x, out = a["x_t"].float(), a["model_output"].float()
    torch.set_num_threads(2)
    two = denoise_step(x, out, a["step"], TABLE, seed=9, sample_index=index).x_prev
    torch.set_num_threads(1)
    one = denoise_step(x, out, a["step"], TABLE, seed=9, sample_index=index).x_prev
    assert torch.equal(one, two)


def mild(x: Tensor, t: Tensor) -> Tensor:
    """A model of 2C channels that magnifies no rounding."""
    t = (t.to(x) / 1000).view(-1, 1, 1, 1)
    return torch.cat([0.7 * x + 0.2 * torch.sin(x + t), torch.cos(x)], 1)


@pytest.mark.parametrize(
    "options",
    [
        {"sampler": "ddpm"},
        {"sampler": "ddpm", "variance_type": "learned_range", "clip": False},
        {"sampler": "ddim", "eta": 0.0},
        {"sampler": "ddim", "eta": 0.7, "rederive_eps": False},
        {"sampler": "dpm++"},
        {"sampler": "ddpm", "clip": DynamicThresholding()},
    ],
)
def test_every_sampler_by_reference_and_by_kernel(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    index, shape = torch.tensor([3, 2**31, 2**47]), (3, 2, 9, 7)

    def run(x_T: Tensor) -> Tensor:
        return sample(
            mild, shape, schedule=NoiseSchedule.cosine(1000), steps=12, noise=x_T, seed=2**63,
            sample_index=index, dtype=x_T.dtype, **options,
        )  # fmt: skip

    x_T = philox_normal(shape, 2**63, sample_index=index)
    calls = _library.native_calls("denoise_step", "CPU")
    done = run(x_T)
    assert _library.native_calls("denoise_step", "CPU") == calls + 12
    for name in ("denoise_step", "philox_normal"):
        module, op = sys.modules[f"fastdiff.ops.{name}"], getattr(torch.ops.fastdiff, name)
        monkeypatch.setattr(module, "_op", op.reference)
    assert torch.equal(philox_normal(shape, 2**63, sample_index=index), x_T)
    assert_close_by_law4(done, run, x_T)
    assert _library.native_calls("denoise_step", "CPU") == calls + 12


def test_compiles_whole_in_place_and_not() -> None:
    a, index = inputs(), torch.arange(3)
    out, step = a["model_output"].float(), a["step"]

    def run(x: Tensor, in_place: bool) -> Tensor:
        options = {"seed": 2, "sample_index": index, "in_place": in_place}
        return denoise_step(x * 1, out, step, TABLE, **options).x_prev + 1

    x = a["x_t"].float()
    for in_place in (False, True):
        compiled = torch.compile(run, fullgraph=True)(x, in_place)
        assert torch.equal(compiled, run(x, in_place))


def test_a_step_out_of_range_is_refused_by_the_kernel_too() -> None:
    a = inputs()
    args = [a["x_t"].float(), a["model_output"].float(), torch.tensor([0, 1, S]), TABLE]
    absent = [None, 1.0, None, None, None, None, None, None, 0, False, None]
    with pytest.raises(RuntimeError, match=f"row {S} of a table of {S}"):
        torch.ops.fastdiff.denoise_step(*args, *absent)


def test_infinities_and_nans_pass_through_their_own_elements() -> None:
    arguments = inputs()
    clean, *_ = denoise_step(**arguments)
    arguments["x_t"][0, 0, 0, 0] = math.nan
    arguments["model_output"][1, 1, 2, 1] = math.inf
    x_prev, pred, _ = denoise_step(**arguments, clip=None, return_pred_x_start=True)
    assert x_prev[0, 0, 0, 0].isnan() and pred[0, 0, 0, 0].isnan()
    assert not x_prev[1, 1, 2, 1].isfinite() and not pred[1, 1, 2, 1].isfinite()
    assert int((x_prev != clean).sum()) == 2
    assert denoise_step(**arguments, clip=1.0, return_pred_x_start=True)[1][0, 0, 0, 0].isnan()


def test_predict_x_start_is_the_unclipped_first_line() -> None:
    arguments = inputs(learned=True)
    x_t, out, step = arguments["x_t"], arguments["model_output"], arguments["step"]
    _, pred = expected(x_t, out, step, TABLE)
    np.testing.assert_allclose(predict_x_start(x_t, out, step, TABLE), pred, rtol=1e-12, atol=1e-13)


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
        (DRAWN | {"seed": -5}, ValueError, "seed must lie in"),
        (DRAWN | {"seed": torch.tensor([1])}, TypeError, r"got torch.int64 \[1\]"),
        ({"uncond_output": normals(3, 4, 5, 3)}, ValueError, "must have model_output's shape"),
        ({"uncond_output": normals(3, 2, 5, 3).half()}, TypeError, "must be model_output's"),
        ({"x_start_before": normals(3, 2, 5, 3).half()}, TypeError, "must be x_t's torch.float64"),
        ({"noise": normals(3, 2, 5, 3).long()}, TypeError, "noise must be floating"),
        ({"model_dtype": torch.int8}, TypeError, "model_dtype must be floating"),
        ({"x_t": torch.zeros(3, 2, 5, 3, dtype=torch.int64)}, ValueError, "x_t must be floating"),
        ({"table": TABLE.to("meta")}, ValueError, "table must share x_t's device"),
    ],
)  # fmt: skip
def test_bad_arguments_are_refused(
    change: dict[str, Any], error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        denoise_step(**(inputs() | change))


@pytest.mark.parametrize("of_x", LAYOUTS)
@pytest.mark.parametrize("of_out", LAYOUTS)
@pytest.mark.parametrize("learned", [False, True])
def test_opcheck(
    of_x: Callable[[Tensor], Tensor], of_out: Callable[[Tensor], Tensor], learned: bool
) -> None:
    a = inputs(learned=learned)
    x, out = of_x(a["x_t"].float()), of_out(a["model_output"].float())
    op, in_place = (getattr(torch.ops.fastdiff, f"denoise_step{end}").default for end in ("", "_"))
    index = torch.arange(3)
    scale, before = torch.ones(3), torch.zeros_like(x)
    seed, step = torch.tensor(7), a["step"]
    for args in (
        (x, out, step, TABLE, out + 1, 2.0, 1.0, scale, before, None, seed, index, 0, True, None),
        (x, out, step, TABLE, None, 1.0, None, None, None, a["noise"], None, None, 0, False, HALF),
    ):
        torch.library.opcheck(op, args, test_utils=("test_schema", "test_faketensor"))
        torch.library.opcheck(in_place, args, test_utils=("test_schema", "test_faketensor"))
    torch.library.opcheck(op, args)
