"""What operators a function of tensors calls, as a program that the native library runs."""

from __future__ import annotations

import struct
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

# As csrc/program/op.cpp numbers them.
KINDS = (
    "none", "boolean", "integer", "number", "text", "memory format", "dtype", "tensor", "integers",
    "numbers", "tensors", "nothings",
)  # fmt: skip
MEMORY_FORMATS = (torch.contiguous_format, torch.preserve_format, torch.channels_last)
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
SECONDS_UNHEARD = 0.1  # that a program runs without Python, which hears Ctrl-C

Function = Callable[..., list[Tensor]]


class Program:
    """Called as the recorded function was, with tensors of the same shapes and dtypes."""

    def __init__(self, words: list[str], code: list[int], constants: list[Tensor]) -> None:
        self._number = torch.ops.fastdiff.program.default(words, code, constants)
        weakref.finalize(self, torch.ops.fastdiff.forget_program.default, self._number)

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        run = torch.ops.fastdiff.run_program.default
        tensors, place = list(inputs), [0, *range(len(inputs))]
        with torch._C._AutoDispatchBelowADInplaceOrView():
            while place:  # and between its calls Ctrl-C is heard
                tensors, place = run(self._number, tensors, place, SECONDS_UNHEARD)
        return tensors


def record(
    function: Function, inputs: Sequence[Tensor] = ()
) -> tuple[list[Tensor], Program | None]:
    """`function(*inputs)`, without gradients, and its program; None where a call can be no part of
    one.

    Tensors that the function reads or writes elsewhere become the program's, not their copies. What
    it does must depend on nothing but them and the inputs, and on their values by operators alone.
    """
    with torch._C._AutoDispatchBelowADInplaceOrView(), Recorder(inputs) as recorder:
        outputs = function(*inputs)
    return outputs, recorder.program(outputs)


@dataclass
class Call:
    """Of an operator, with slots for tensors."""

    operator: torch._ops.OpOverload
    of_floats: bool  # whether an array of a floating dtype is among the arguments
    count: int  # of arguments
    arguments: list[int]  # of each: kind, whether its type is optional, how many values, them
    reads: set[int]
    results: list[int]
    returns_list: bool


class Unrecordable(Exception):
    """What no program can hold."""


class Listener(TorchDispatchMode):
    """Hears of the operators that are called within it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # there is nothing to skip, and to do so torch imports its compiler: a second


class Recorder(Listener):
    """Writes down the operators that are called within it."""

    def __init__(self, inputs: Iterable[Tensor]) -> None:
        super().__init__()
        self._calls: list[Call] = []
        self._complete = True
        self._words: dict[str, int] = {}
        self._slots = WeakTensorKeyDictionary()  # a tensor lives as long as the function wants it
        self._count = 0
        self._constants: dict[int, Tensor] = {}  # by slot
        for tensor in inputs:
            self._new_slot(tensor)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if self._complete and not _says_the_same(func, args, kwargs, out):
            try:
                self._calls.append(self._call(func, args, kwargs, out))
            except Unrecordable:
                self._complete = False
        return out

    def program(self, results: Iterable[Tensor]) -> Program | None:
        """Of the calls so far."""
        if not self._complete or any(result not in self._slots for result in results):
            return None
        outputs = [self._slots[result] for result in results]
        last_read = dict.fromkeys(outputs, len(self._calls))
        for i in reversed(range(len(self._calls))):
            for slot in (*self._calls[i].results, *self._calls[i].reads):
                last_read.setdefault(slot, i)
        code = [self._count, len(outputs), *outputs, len(self._constants), *self._constants]
        for i, call in enumerate(self._calls):
            schema = call.operator._schema
            code += [self._word(schema.name), self._word(schema.overload_name)]
            code += [call.count, *call.arguments]
            unread = [slot for slot in {*call.results, *call.reads} if last_read[slot] == i]
            code += [call.returns_list, len(call.results), *call.results, len(unread), *unread]
        return Program([*self._words], code, [*self._constants.values()])

    def _call(self, operator: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> Call:
        arrays = [value for value in args if isinstance(value, Tensor) and value.dim() > 0]
        of_floats = any(array.is_floating_point() for array in arrays)
        arguments = operator._schema.arguments
        if operator is torch.ops.aten.add.Tensor and kwargs.get("alpha", 1) == 1:
            arguments = arguments[:2]  # the program has a way to add that takes no factor
        call = Call(operator, of_floats, len(arguments), [], set(), [], isinstance(out, list))
        for i, argument in enumerate(arguments):
            type, default = argument.real_type, argument.default_value
            value = args[i] if i < len(args) else kwargs.get(argument.name, default)
            kind, values = self._value(call, value, type)
            optional = type.kind() == "OptionalType"
            call.arguments += [KINDS.index(kind), optional, len(values), *values]
        for result in out if isinstance(out, (list, tuple)) else (out,):
            if not isinstance(result, Tensor):
                raise Unrecordable
            call.results.append(self._new_slot(result))
        return call

    def _value(self, call: Call, value: Any, type: Any) -> tuple[str, list[int]]:
        """An argument's kind and values."""
        kind = type.kind()
        if value is None:
            return "none", []
        if kind == "OptionalType":
            return self._value(call, value, type.getElementType())
        if kind == "ListType":
            return self._list(call, value, type.getElementType())
        if kind == "TensorType" and isinstance(value, (int, float)) and call.of_floats:
            value = torch.scalar_tensor(value, dtype=torch.float64)  # has no say in the dtype
        if kind == "TensorType" and isinstance(value, Tensor):
            return "tensor", [self._read(call, value)]
        if isinstance(value, torch.memory_format):
            return "memory format", [MEMORY_FORMATS.index(value)]
        if isinstance(value, torch.dtype) and value in DTYPES:
            return "dtype", [DTYPES.index(value)]
        if kind == "BoolType":
            return "boolean", [int(value)]
        if kind in ("IntType", "SymIntType") and isinstance(value, int):
            return "integer", [value]
        if kind == "FloatType":
            return "number", [*struct.unpack("q", struct.pack("d", value))]
        if kind == "StringType":
            return "text", [self._word(value)]
        raise Unrecordable

    def _list(self, call: Call, values: Sequence[Any], type: Any) -> tuple[str, list[int]]:
        parts = [self._value(call, value, type) for value in values]
        kind = f"{parts[0][0]}s" if parts else "nothings"
        if kind not in KINDS or (parts and type.kind() == "OptionalType"):
            raise Unrecordable
        return kind, [number for _, numbers in parts for number in numbers]

    def _read(self, call: Call, tensor: Tensor) -> int:
        slot: int | None = self._slots.get(tensor)
        if slot is None:
            slot = self._new_slot(tensor)
            self._constants[slot] = tensor
        call.reads.add(slot)
        return slot

    def _new_slot(self, tensor: Tensor) -> int:
        slot = self._slots[tensor] = self._count
        self._count += 1
        return slot

    def _word(self, word: str) -> int:
        return self._words.setdefault(word, len(self._words))


def _says_the_same(operator: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> bool:
    """Whether a call does nothing to tensors, and tells in each run what it told in this."""
    if operator._schema.name == "aten::promote_types":
        return True
    to = operator._schema.name == "aten::to" and kwargs.get("memory_format") is None
    return to and out is args[0]
