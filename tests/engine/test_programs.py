"""A recorded program does what the function does, and goes when it should."""

from __future__ import annotations

import copy
import pickle
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fastdiff.engine import accelerate, recording
from fastdiff.engine.programs import MOST_PROGRAMS, Programs
from fastdiff.engine.recording import record
from fastdiff.ops import _library, use_reference
from tests.engine.test_accelerate import CONFIGS, inputs, made

pytestmark = pytest.mark.skipif(
    _library.native_path() is None, reason="the native library runs programs"
)
GIVEN = (torch.randn(2, 6, 8, 8), torch.randn(2, 6))


def runs() -> int:
    return _library.native_calls("program", "CPU")


def of_every_kind(x: Tensor, y: Tensor) -> list[Tensor]:
    """Calls whose arguments and results are of all kinds that programs hold."""
    x = x.contiguous(memory_format=torch.channels_last)
    first, second = y.chunk(2, dim=1)  # a list
    values, _ = torch.ops.aten.max.dim(x, 1, True)  # two results, one of them read by nobody
    x = torch.nn.functional.pad(x, (0, 2, 0, 2), mode="reflect")  # a text
    x = nn.functional.interpolate(x, scale_factor=0.8, mode="nearest")  # numbers, None
    x = nn.functional.avg_pool2d(x, 2)  # an empty list
    x = nn.functional.layer_norm(x, (4, 4), eps=0.3)  # a number
    x = 2 * x * 0.3 + x + 1  # in a tensor's place, and sums
    product = (first @ second.T).sum().expand(2, 1, 4, 4)
    COUNT.bitwise_not_().neg_()  # in place
    joined = torch.cat((x, values[..., ::2, ::2], product, WEIGHT.expand(2, -1, 4, 4)), dim=1)
    return [joined, x.to(torch.float64)]  # a dtype


WEIGHT, COUNT = torch.randn(3, 1, 1), torch.tensor(0)


class Called(nn.Module):
    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_program_repeats_its_function_on_other_values(dtype: torch.dtype) -> None:
    given = [tensor.to(dtype) for tensor in GIVEN]
    COUNT.zero_()
    out, program = record(of_every_kind, given)
    assert same(out, of_every_kind(*given)) and program is not None and COUNT == 2
    for scale in (1, -2):
        x, y = (scale * torch.randn_like(tensor) for tensor in given)
        before = runs()
        assert same(program(x, y), of_every_kind(x, y))
        assert runs() == before + 1
    WEIGHT.mul_(2)  # which it reads where it lies
    assert same(program(*given), of_every_kind(*given)) and COUNT == 8


def test_in_pieces_a_program_does_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    COUNT.zero_()
    wanted, program = record(of_every_kind, GIVEN)
    assert program is not None
    monkeypatch.setattr(recording, "SECONDS_UNHEARD", 0.0)
    before = runs()
    assert same(program(*GIVEN), wanted)
    assert runs() == before + 1 and COUNT == 2
    constant = record(lambda x, y: [x], GIVEN)[1]
    assert constant is not None and same(constant(*GIVEN), [GIVEN[0]])


def test_ctrl_c_is_heard_within_a_program(monkeypatch: pytest.MonkeyPatch) -> None:
    def long(x: Tensor) -> list[Tensor]:
        for _ in range(2000):
            x = x @ x
        return [x]

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    x = torch.eye(300)
    wanted, program = record(long, [x])
    assert program is not None
    monkeypatch.setattr(recording, "SECONDS_UNHEARD", 0.001)
    before, handler = runs(), signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    try:
        with pytest.raises(KeyboardInterrupt):
            program(x)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
    assert runs() == before
    assert same(program(x), wanted)


def same(found: list[Tensor], wanted: list[Tensor]) -> bool:
    return all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize(
    "function",
    [
        lambda x, y: x.clone().add_(1),  # times a number of whatever type
        lambda x, y: x - x,
        lambda x, y: torch.add(x, x, alpha=2),
        lambda x, y: x * y.sum().item(),
        lambda x, y: (x > 0) * 0.5,  # a number that has a say in the dtype
        lambda x, y: x[:, torch.tensor([0, 2])],  # a list of tensors or None
        lambda x, y: x.to(torch.int64),
        lambda x, y: WEIGHT,  # not of its making
    ],
)
def test_what_no_program_can_hold_stays_as_it_is(function: Callable[..., Tensor]) -> None:
    out, program = record(lambda x, y: [function(x, y)], GIVEN)
    assert program is None and torch.equal(out[0], function(*GIVEN))
    programs, model, before = Programs(), Called(function), runs()
    for _ in range(4):
        assert torch.equal(programs.run(model, *GIVEN), function(*GIVEN))
    assert runs() == before


@pytest.mark.parametrize("wanted", [(0,), (0, 1), (2,), (0, 1, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_our_own_kernels_are_called_past_the_dispatcher(
    wanted: tuple[int, ...], dtype: torch.dtype
) -> None:
    """And make no statistics that nobody reads; what they do not cover goes to the reference."""

    def normed(x: Tensor) -> list[Tensor]:
        results = torch.ops.fastdiff.group_norm_silu.default(
            x, 3, None, None, 1e-5, None, None, True, None
        )
        return [results[i] for i in wanted]

    x = GIVEN[0].to(dtype)
    _, program = record(normed, [x])
    assert program is not None
    covered = dtype == torch.float32
    before = _library.native_calls("group_norm_silu", "CPU")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        found = program(2 * x)
    assert _library.native_calls("group_norm_silu", "CPU") == before + covered
    assert same(found, normed(2 * x))
    heard = {event.key for event in profile.key_averages()}
    assert "fastdiff::run_program" in heard
    assert ("fastdiff::group_norm_silu" in heard) != covered  # else the dispatched reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_every_unet_is_run_by_its_program(name: str, dtype: torch.dtype) -> None:
    fast = accelerate(made(name).to(dtype))
    for batch in (3, 1):
        for call in range(4):
            x, t, labels = inputs(made(name), batch)
            x, before = x.to(dtype), runs()
            found = fast(x, t, labels)
            assert runs() - before == (call > 1)
            handle = fast.plan.parts[0].register_forward_hook(lambda *_: None)
            assert torch.equal(found, fast(x, t, labels))
            assert runs() - before == (call > 1)
            handle.remove()


@torch.no_grad()
def test_who_listens_hears_every_operator() -> None:
    fast, (x, t, _) = accelerate(made("small")), inputs(made("small"), 1)
    for _ in range(3):
        fast(x, t)
    before = runs()
    with FlopCounterMode(display=False) as counter:
        fast(x, t)
    assert counter.get_total_flops() > 0
    with use_reference("attention_block"):
        fast(x, t)
    assert runs() == before
    fast(x, t)
    assert runs() == before + 1


@torch.no_grad()
def test_copies_record_for_themselves() -> None:
    fast, (x, t, _) = accelerate(made("small")), inputs(made("small"), 1)
    found = [fast(x, t) for _ in range(3)][-1]
    copies = [copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))]
    del fast
    for other in copies:
        assert not other.programs._kept
        assert all(torch.equal(other(x, t), found) for _ in range(3))


def test_an_error_is_the_operators_own() -> None:
    model = Called(lambda x, row: x.index_select(0, row))
    programs, x = Programs(), torch.randn(3, 2)
    for row in (0, 2, 1):
        assert torch.equal(programs.run(model, x, torch.tensor([row])), x[row : row + 1])
    with pytest.raises(IndexError, match="out of range"):
        programs.run(model, x, torch.tensor([3]))
    before = runs()
    programs.run(model, x, torch.tensor([1]))
    assert runs() == before + 1
    with pytest.raises(RuntimeError, match="there is no program 0"):
        torch.ops.fastdiff.run_program.default(0, [x], [0, 0], 1.0)


def test_the_oldest_programs_go() -> None:
    programs, model = Programs(), nn.Identity()
    for size in range(1, 2 * MOST_PROGRAMS):
        for _ in range(2):
            programs.run(model, torch.zeros(size))
    assert len(programs._kept) == MOST_PROGRAMS


def test_a_program_takes_its_tensors_along() -> None:
    left = torch.ops.fastdiff.forget_program.default(0)
    weights = [torch.randn(6, 6)]
    _, program = record(lambda x, y: [y @ weights[0]], GIVEN)
    dead = weakref.ref(weights.pop())
    assert program is not None and dead() is not None
    assert torch.ops.fastdiff.forget_program.default(0) == left + 1
    del program
    assert dead() is None and torch.ops.fastdiff.forget_program.default(0) == left


def test_recording_does_not_bring_in_the_compiler() -> None:
    code = (
        "import sys, torch; from fastdiff.engine.recording import record; "
        "assert record(lambda x: [x.relu()], (torch.ones(3),))[1] is not None; "
        "assert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


PEAK = """
import resource, sys, torch
from fastdiff.engine.recording import record

def function(x):
    for _ in range(40):
        x = torch.sin(x)
    return [x]

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

x = torch.ones(5 * 2**20)  # 20 MB
function(x)
before = peak()
_, program = record(function, (x,))
recorded = peak()
program(x)
print(recorded - before, peak() - before)
"""


def test_tensors_go_after_their_last_reading() -> None:
    command = [sys.executable, "-c", PEAK]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert all(int(more) < 60 for more in done.stdout.split()), done.stdout
