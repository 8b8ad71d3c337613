"""The loop: noise by image and not by batch, what the model is handed, and what is refused."""

from __future__ import annotations

import sys
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastdiff.diffusion import DynamicThresholding
from fastdiff.ops.philox_normal import philox_normal
from fastdiff.samplers import SAMPLERS, SampleStep, sample, sample_progressive
from fastdiff.schedules import NoiseSchedule, timesteps

LINEAR = NoiseSchedule.linear(1000)
SHAPE = (5, 2, 4, 3)


def wavy(x: Tensor, t: Tensor) -> Tensor:
    return torch.sin(3 * x + (t.to(x) / 150).view(-1, *[1] * (x.ndim - 1)))


RUNS: list[dict[str, Any]] = [
    {"sampler": "ddpm", "steps": 10},
    {"sampler": "ddim", "steps": 10, "eta": 0.7},
    {"sampler": "dpm++", "steps": 10},
]


@pytest.mark.parametrize("options", RUNS)
def test_a_seed_is_a_sample(options: dict[str, Any]) -> None:
    first = sample(wavy, SHAPE, schedule=LINEAR, seed=3, **options)
    assert torch.equal(first, sample(wavy, SHAPE, schedule=LINEAR, seed=3, **options))
    assert not torch.equal(first, sample(wavy, SHAPE, schedule=LINEAR, seed=4, **options))
    assert first.shape == SHAPE and first.dtype == torch.float32 and first.isfinite().all()


@pytest.mark.parametrize("options", RUNS)
def test_an_image_does_not_know_its_batch(options: dict[str, Any]) -> None:
    """Bit for bit, for a model that is elementwise and so rounds alike in any batch."""
    whole = sample(wavy, SHAPE, schedule=LINEAR, seed=3, **options)
    for i in range(5):
        one = sample(wavy, (1, *SHAPE[1:]), schedule=LINEAR, seed=3, sample_index=i, **options)
        assert torch.equal(one[0], whole[i])
    index = torch.tensor([4, 0, 2])
    some = sample(wavy, (3, *SHAPE[1:]), schedule=LINEAR, seed=3, sample_index=index, **options)
    assert torch.equal(some, whole[index])


@pytest.mark.parametrize("options", RUNS)
def test_the_noise_is_philox_normal_by_draw(options: dict[str, Any]) -> None:
    """Draw 0 is x_T and draw k + 1 the k-th step's, and so counts a noise callable."""

    def noise(draw: int, sample_index: Tensor) -> Tensor:
        return philox_normal(SHAPE, 11, sample_index=sample_index, draw=draw)

    made = sample(wavy, SHAPE, schedule=LINEAR, seed=11, sample_index=40, **options)
    given = sample(wavy, SHAPE, schedule=LINEAR, noise=noise, sample_index=40, **options)
    assert torch.equal(made, given)
    x_T = noise(0, torch.arange(40, 45))
    mixed = sample(wavy, SHAPE, schedule=LINEAR, noise=x_T, seed=11, sample_index=40, **options)
    assert torch.equal(made, mixed)


class Calls(TorchDispatchMode):
    """The ops that reach the dispatcher, by name, but for views and the range checks of the CPU."""

    UNCOUNTED = ("select", "expand", "detach", "min", "max", "_local_scalar_dense")

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if op._schema.name.removeprefix("aten::") not in self.UNCOUNTED:
            self.names.append(op._schema.name)
        return op(*args, **kwargs or {})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", [*RUNS, {"sampler": "ddpm", "variance_type": "learned_range"}])
def test_a_step_is_one_call_of_the_model_and_one_op(
    options: dict[str, Any], dtype: torch.dtype
) -> None:
    inputs: list[Tensor] = []
    out = torch.zeros(5, 4 if "variance_type" in options else 2, 4, 3, dtype=dtype)

    def model(x: Tensor, t: Tensor) -> Tensor:
        inputs.append(x)
        calls.names.append("model")
        return out

    options = {"steps": 10, "schedule": LINEAR, "dtype": dtype} | options
    with Calls() as calls:
        x = sample(model, SHAPE, **options)
    assert calls.names[calls.names.index("model") :] == ["model", "fastdiff::denoise_step"] * 10
    assert {x.dtype for x in inputs} == {dtype}
    steps = [*sample_progressive(lambda x, t: out, SHAPE, **options)]
    for seen, step in zip(inputs, steps, strict=True):
        assert torch.equal(seen, step.x_t.to(dtype)) and step.x_t.dtype == torch.float32
    assert torch.equal(x, steps[-1].x_prev)


def labelled(x: Tensor, t: Tensor, class_labels: Tensor) -> Tensor:
    shift = class_labels.to(x).view(-1, 1, 1, 1) / 5
    return torch.sin(3 * x + shift + (t.to(x) / 150).view(-1, 1, 1, 1))


@pytest.mark.parametrize("clip", [True, DynamicThresholding(0.9)])
@pytest.mark.parametrize("options", RUNS)
def test_guidance_is_ho_and_salimans(options: dict[str, Any], clip: Any) -> None:
    """(1 + w) of the conditional score less w of the other, whatever the sampler."""
    labels, none, w = torch.tensor([3, 1, 4, 1, 5]), torch.full((5,), 9), 1.7
    calls: list[int] = []

    def model(x: Tensor, t: Tensor, class_labels: Tensor) -> Tensor:
        calls.append(len(x))
        return labelled(x, t, class_labels)

    def guided(x: Tensor, t: Tensor) -> Tensor:
        return (1 + w) * labelled(x, t, labels) - w * labelled(x, t, none)

    common = {"schedule": LINEAR, "clip": clip, "dtype": torch.float64, "seed": 3} | options
    got = sample(
        model, SHAPE, class_labels=labels, uncond_labels=none, guidance_scale=1 + w, **common
    )
    assert calls == [10] * 10
    torch.testing.assert_close(got, sample(guided, SHAPE, **common), rtol=1e-9, atol=1e-9)
    unguided = sample(model, SHAPE, class_labels=labels, uncond_labels=none, **common)
    assert torch.equal(unguided, sample(model, SHAPE, class_labels=labels, **common))
    assert calls[10:] == [5] * 20 and not torch.equal(got, unguided)


@pytest.mark.parametrize("options", RUNS)
def test_history(options: dict[str, Any]) -> None:
    seen: list[SampleStep] = []
    x = sample(wavy, SHAPE, schedule=LINEAR, callback=seen.append, **options)
    history = list(sample_progressive(wavy, SHAPE, schedule=LINEAR, **options))
    spacing = "trailing" if options["sampler"] == "dpm++" else "leading"
    assert [s.t for s in history] == timesteps(1000, 10, spacing).tolist()
    assert [s.step for s in history] == list(range(10)) and history[0].num_steps == 10
    for before, after in pairwise(history):
        assert after.x_t is before.x_prev
    for one, other in zip(seen, history, strict=True):
        assert torch.equal(one.x_prev, other.x_prev)
        assert torch.equal(one.pred_x_start, other.pred_x_start)
    assert torch.equal(history[-1].x_prev, x)
    assert torch.equal(history[-1].pred_x_start, x), "the last step is x_0 itself"
    assert all(float(s.pred_x_start.abs().max()) <= 1 for s in history)


def test_given_timesteps_are_visited() -> None:
    history = sample_progressive(wavy, SHAPE, schedule=LINEAR, sampler="ddim", steps=[900, 31, 7])
    assert [s.t for s in history] == [900, 31, 7]


class Recorder(nn.Module):
    """Remembers what it was called with."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones((), dtype=dtype))
        self.calls: list[tuple[Tensor, Tensor, dict[str, Tensor]]] = []

    def forward(self, x: Tensor, t: Tensor, **conditions: Tensor) -> Tensor:
        self.calls.append((x, t, conditions))
        return x * self.weight


def test_what_the_model_is_handed() -> None:
    model, labels = Recorder(), torch.arange(5)
    sample(model, SHAPE, schedule=LINEAR, steps=2)
    assert [t.tolist() for _, t, _ in model.calls] == [[500] * 5, [0] * 5]
    assert all(t.dtype == torch.int64 and conditions == {} for _, t, conditions in model.calls)
    sample(model, SHAPE, schedule=LINEAR, steps=2, class_labels=labels)
    assert torch.equal(model.calls[-1][2]["class_labels"], labels)


def test_no_graph_is_built_and_the_result_can_be_trained_on() -> None:
    model = Recorder()
    x = sample(model, SHAPE, schedule=LINEAR, steps=2)
    assert not x.requires_grad and not x.is_inference()
    assert torch.is_grad_enabled()
    next(sample_progressive(model, SHAPE, schedule=LINEAR, steps=2))
    assert torch.is_grad_enabled()
    with torch.inference_mode():
        assert torch.equal(sample(model, SHAPE, schedule=LINEAR, steps=2), x)


@pytest.mark.parametrize(
    ("dtype", "state"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_dtypes(dtype: torch.dtype, state: torch.dtype) -> None:
    """The model sees its own dtype; the state keeps float32 at least."""
    model = Recorder(dtype)
    assert sample(model, SHAPE, schedule=LINEAR, steps=2).dtype == state
    assert model.calls[0][0].dtype == dtype
    sample(Recorder(), SHAPE, schedule=LINEAR, steps=2, dtype=torch.float32)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("prediction_type", ["v", "x_start", "epsilon"])
def test_zero_terminal_snr(sampler: str, prediction_type: str) -> None:
    schedule = LINEAR.rescale_zero_terminal_snr()
    options: dict[str, Any] = {"schedule": schedule, "sampler": sampler, "steps": 8}
    options |= {"spacing": "trailing", "prediction_type": prediction_type}
    if prediction_type == "epsilon":
        with pytest.raises(ValueError, match="no signal at t = 999 and epsilon does not"):
            sample(wavy, SHAPE, **options)
        options["spacing"] = "leading"
    x = sample(wavy, SHAPE, **options)
    assert x.isfinite().all()


def test_a_learned_variance_may_be_ignored_but_not_missing() -> None:
    def both(x: Tensor, t: Tensor) -> Tensor:
        return torch.cat([wavy(x, t), x.cos()], 1)

    for options in RUNS:
        one = sample(both, SHAPE, schedule=LINEAR, **options)
        assert torch.equal(one, sample(wavy, SHAPE, schedule=LINEAR, **options))
    learned = {"schedule": LINEAR, "steps": 10, "variance_type": "learned_range"}
    fixed = sample(both, SHAPE, schedule=LINEAR, steps=10)
    assert not torch.equal(sample(both, SHAPE, **learned), fixed)
    with pytest.raises(ValueError, match=r"expected \[5, 4, 4, 3\] for a learned variance"):
        sample(wavy, SHAPE, **learned)


def test_empty_batch() -> None:
    assert sample(wavy, (0, 2, 3), schedule=LINEAR, steps=3).shape == (0, 2, 3)


def test_progress_goes_where_it_is_asked_to() -> None:
    told: list[tuple[int, int]] = []
    options = {"schedule": LINEAR, "sampler": "ddim", "steps": 3}
    with_progress = sample(wavy, SHAPE, **options, progress=lambda *done: told.append(done))
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert torch.equal(with_progress, sample(wavy, SHAPE, **options))


def test_progress_without_rich(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setitem(sys.modules, "rich.progress", None)
    sample(wavy, SHAPE, schedule=LINEAR, steps=3, progress=True)
    assert capsys.readouterr().err.split("\r")[1:] == [
        "sampling 1/3",
        "sampling 2/3",
        "sampling 3/3\n",
    ]


def test_progress_with_rich(capsys: Any) -> None:
    sample(wavy, SHAPE, schedule=LINEAR, steps=3, progress=True)
    assert "100%" in capsys.readouterr().err


def test_no_bar_stands_above_an_error(capsys: Any) -> None:
    with pytest.raises(ValueError, match="1001"):
        sample(wavy, SHAPE, schedule=LINEAR, steps=1001, progress=True)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"sampler": "euler"}, "unknown sampler 'euler': choose one of ddpm, ddim, dpm\\+\\+"),
        ({"steps": 1001}, "steps must lie in 1..1000, got 1001"),
        ({"steps": [1, 2]}, "strictly decreasing"),
        ({"spacing": "even", "steps": 4}, "unknown spacing 'even'"),
        ({"eta": 0.5}, "eta belongs to sampler 'ddim'"),
        ({"prediction_type": "noise"}, "unknown prediction_type 'noise'"),
        ({"variance_type": "free"}, "unknown variance_type 'free'"),
        ({"clip": -1.0}, "clip must be True, False, a positive number"),
        ({"seed": -1}, "seed must lie in"),
        ({"sample_index": -1}, "sample_index must lie in"),
        ({"sample_index": torch.arange(4)}, r"sample_index must be \[5\]"),
        ({"noise": torch.zeros(5, 2)}, r"noise must have shape \[5, 2, 4, 3\], got \[5, 2\]"),
        ({"noise": lambda *_: torch.zeros(1)}, r"noise\(draw\) must have shape"),
        ({"class_labels": torch.arange(3)}, r"class_labels must have shape \[5\], got \[3\]"),
        ({"guidance_scale": float("nan")}, "guidance_scale must be finite, got nan"),
        ({"guidance_scale": 2.0}, "guidance_scale 2.0 needs class_labels, and uncond_labels"),
        (
            {
                "guidance_scale": 2.0,
                "class_labels": torch.arange(5),
                "uncond_labels": torch.ones(1),
            },
            r"uncond_labels must have shape \[5\], got \[1\]",
        ),
        ({"start": 500}, "start=500 begins at a given x_t"),
        ({"start": 333, "steps": 10, "noise": torch.zeros(SHAPE)}, "the nearest is 300"),
        ({"shape": (5,)}, r"shape must be \(N, C, ...\)"),
    ],
)
def test_bad_arguments_are_refused_at_the_call(change: dict[str, Any], sentence: str) -> None:
    arguments: dict[str, Any] = {"shape": SHAPE, "schedule": LINEAR} | change
    with pytest.raises(ValueError, match=sentence):
        sample_progressive(wavy, **arguments)


@pytest.mark.parametrize(
    ("model", "error", "sentence"),
    [
        (lambda x, t: (x,), TypeError, "the model returned tuple; fastdiff takes a model"),
        (lambda x, t: x[:, :1], ValueError, r"returned \[5, 1, 4, 3\]; expected \[5, 2, 4, 3\] or"),
    ],
)
def test_bad_models_are_refused(model: Any, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        sample(model, SHAPE, schedule=LINEAR, steps=2)


@pytest.mark.parametrize(
    "options",
    [
        {"sampler": "ddpm", "variance_type": "fixed_small"},
        {"sampler": "ddpm", "variance_type": "fixed_large"},
        {"sampler": "ddpm", "variance_type": "learned_range"},
        {"sampler": "ddim", "eta": 1.0},
    ],
    ids=lambda o: "-".join(map(str, o.values())),
)
def test_the_last_step_adds_no_noise(options: dict[str, Any]) -> None:
    """sigma = 0 at t = 0: what is drawn for it does not matter, what is drawn before does."""
    learned = options.get("variance_type") == "learned_range"

    def model(x: Tensor, t: Tensor) -> Tensor:
        out = torch.sin(3 * x)
        return torch.cat([out, out], 1) if learned else out

    def drawn_with(changed: int | None) -> Tensor:
        def noise(draw: int, index: Tensor) -> Tensor:
            z = torch.randn(SHAPE, generator=torch.Generator().manual_seed(draw))
            return z + 1 if draw == changed else z

        return sample(model, SHAPE, schedule=LINEAR, steps=10, noise=noise, **options)

    plain = drawn_with(None)
    assert torch.equal(drawn_with(10), plain)
    assert not torch.equal(drawn_with(9), plain)
