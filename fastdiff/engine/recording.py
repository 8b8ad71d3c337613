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
    "none", "boolean", "integer", "number", "text", "memory format", "tensor", "integers",
    "numbers", "tensors", "nothings",
)  # fmt: skip
MEMORY_FORMATS = (torch.contiguous_format, torch.preserve_format, torch.channels_last)


class Program:
    """Called as the recorded function was, with tensors of the same shapes and dtypes."""

    def __init__(self, words: list[str], code: list[int], constants: list[Tensor]) -> None:
        self._number = torch.ops.fastdiff.program.default(words, code, constants)
        weakref.finalize(self, torch.ops.fastdiff.forget_program.default, self._number)

    def __call__(self, *inputs: Tensor) -> Tensor:
        out: Tensor = torch.ops.fastdiff.run_program.default(self._number, inputs)
        return out


def record(
    function: Callable[..., Tensor], inputs: Sequence[Tensor]
) -> tuple[Tensor, Program | None]:
    """`function(*inputs)` and its program; None where a call can be no part of one.

    Tensors that the function reads from elsewhere become the program's, not their copies. What it
    does must depend on nothing but them and the inputs, and on the inputs' values by operators
    alone.
    """
    with Recorder(inputs) as recorder:
        out = function(*inputs)
    return out, recorder.program(out)


@dataclass
class Call:
    """Of an operator, with slots for tensors."""

    operator: torch._ops.OpOverload
    of_floats: bool  # whether an array of a floating dtype is among the arguments
    arguments: list[
        int
    ]  # for each its kind, whether its type is optional, its values' number, them
    reads: set[int]
    results: list[int]
    returns_list: bool


class Unrecordable(Exception):
    """What no program can hold."""


class Recorder(TorchDispatchMode):
    """Listens to the operators that are called within it."""

    def __init__(self, inputs: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
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
        out = func(*args, **(kwargs or {}))
        if self._complete:
            try:
                self._calls.append(self._call(func, args, kwargs or {}, out))
            except Unrecordable:
                self._complete = False
        return out

    def program(self, out: Tensor) -> Program | None:
        """Of the calls so far, with `out` as the result."""
        if not self._complete or out not in self._slots:
            return None
        output = self._slots[out]
        last_read = {output: len(self._calls)}
        for i in reversed(range(len(self._calls))):
            for slot in (*self._calls[i].results, *self._calls[i].reads):
                last_read.setdefault(slot, i)
        code = [self._count, output, len(self._constants), *self._constants]
        for i, call in enumerate(self._calls):
            schema = call.operator._schema
            code += [self._word(schema.name), self._word(schema.overload_name)]
            code += [len(schema.arguments), *call.arguments]
            unread = [slot for slot in {*call.results, *call.reads} if last_read[slot] == i]
            code += [call.returns_list, len(call.results), *call.results, len(unread), *unread]
        return Program([*self._words], code, [*self._constants.values()])

    def _call(self, operator: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> Call:
        if operator._schema.is_mutable:
            raise Unrecordable
        arrays = [value for value in args if isinstance(value, Tensor) and value.dim() > 0]
        of_floats = any(array.is_floating_point() for array in arrays)
        call = Call(operator, of_floats, [], set(), [], isinstance(out, list))
        for i, argument in enumerate(operator._schema.arguments):
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
        if kind == "TensorType" and isinstance(value, float) and call.of_floats:
            value = torch.scalar_tensor(value, dtype=torch.float64)  # has no say in the dtype
        if kind == "TensorType" and isinstance(value, Tensor):
            return "tensor", [self._read(call, value)]
        if isinstance(value, torch.memory_format):
            return "memory format", [MEMORY_FORMATS.index(value)]
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
