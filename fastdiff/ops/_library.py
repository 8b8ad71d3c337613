"""The op library `fastdiff`: defines every op and loads the native kernels for them.

Each op is defined in Python with its reference as the default kernel. The native library, where
one was built, attaches C++ and CUDA kernels to the same ops when it is loaded; a `triton.py` beside
the reference serves CUDA tensors where triton is installed, and is loaded by the first of them. The
dispatcher then picks by the tensor's device.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import importlib.util
import inspect
import os
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.autograd import forward_ad

_library = torch.library.Library("fastdiff", "FRAGMENT")
_ops: dict[str, torch._ops.OpOverload] = {}
_triton_ops: set[str] = set()
_composite_ops: set[str] = set()
_turned_to_reference: Counter[str] = Counter()  # by how many, in whatever threads
_turning = threading.Lock()
_triton_calls: Counter[str] = Counter()
_composite_calls: Counter[tuple[str, str]] = Counter()


def define(
    schema: str,
    *,
    reference: Callable[..., Any],
    fake: Callable[..., Any],
    composite: Callable[..., Any] | None = None,
    composite_records: Callable[[torch.Tensor], bool] = lambda x: False,
    backward: Callable[..., Any] | None = None,
    setup_context: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    """Define the op `fastdiff::<name>` and return what calls it, or its reference as
    `use_reference` asks and where calls are `transformed`.

    Args:
        schema: `name(Tensor x, int n, ...) -> Tensor`, in the grammar of `torch.library`. An op
            that writes to its arguments, `Tensor(a!) x`, takes no backward, and refuses a gradient
            at the call.
        reference: PyTorch code that serves every device without a kernel of its own. It also stands
            as the overload `<name>.reference`, to which native kernels hand the inputs they do not
            cover. A Triton kernel is the function `<name>` in the `triton.py` beside it.
        fake: shapes, strides and dtypes of the outputs, without data.
        composite: PyTorch code over other ops that is faster than the reference, and serves CPU and
            CUDA tensors in its stead. Its first argument is a tensor.
        composite_records: whether, for this first argument, autograd is to record the composite's
            own calls, in place of `backward`.
        backward, setup_context: as for `torch.library.register_autograd`. An op without a backward
            raises `NotImplementedError` when a gradient is asked of it.
    """
    name = schema[: schema.index("(")]
    for overload, kernel in (("", _default_kernel(name, reference)), (".reference", reference)):
        _library.define(schema.replace("(", f"{overload}(", 1))
        _library.impl(f"{name}{overload}", kernel, "CompositeExplicitAutograd")
        torch.library.register_fake(f"fastdiff::{name}{overload}", fake, lib=_library)
    if _triton_source(reference) and _triton_found():
        _library.impl(name, _triton_kernel(name, reference), "CUDA")
        _triton_ops.add(name)
    if composite is not None:
        composite = _counted(name, composite)
        for device in ("CPU", "CUDA"):
            _library.impl(name, composite, device)
        _composite_ops.add(name)
    op = _ops[name] = getattr(torch.ops.fastdiff, name).default
    if op._schema.is_mutable:
        _guard_in_place(op)
    else:
        torch.library.register_autograd(
            f"fastdiff::{name}",
            backward or _refuse_gradient(op),
            setup_context=setup_context,
            lib=_library,
        )
    if composite is not None:
        served = _dispatched_where_needed(op, composite, composite_records)
    elif op._schema.is_mutable:
        served = op
    elif backward is not None and setup_context is not None:
        served = _below_autograd(op, _recorded_at_once(op, backward, setup_context))
    else:
        served = _below_autograd(op, op)

    def call(*args: Any) -> Any:
        by_reference = name in _turned_to_reference or transformed()
        return reference(*args) if by_reference else served(*args)

    return call


@contextlib.contextmanager
def use_reference(*names: str) -> Iterator[None]:
    """Within it the named ops, or all of them, are their references: values and gradients.

    It holds for the whole process, and for what `torch.compile` has compiled before.

    Raises:
        ValueError: no op has such a name.
    """
    if unknown := set(names) - _ops.keys():
        known = ", ".join(sorted(_ops))
        raise ValueError(f"there is no op {sorted(unknown)[0]!r}; there are {known}")
    asked = Counter(names or tuple(_ops))
    with _turning:
        _turned_to_reference.update(asked)
    try:
        yield
    finally:
        with _turning:
            _turned_to_reference.subtract(asked)
            for name in asked:
                if not _turned_to_reference[name]:
                    del _turned_to_reference[name]


def transformed() -> bool:
    """Whether a transform of `torch.func` or forward-mode differentiation is at work: they see
    through PyTorch's own calls alone, and take a kernel of ours for a constant."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def reference_asked() -> bool:
    """Whether `use_reference` holds for any op."""
    return bool(_turned_to_reference)


def ops() -> dict[str, torch._ops.OpOverload]:
    """Every op defined so far, by name."""
    return dict(_ops)


def native_kernel(op: str, device: str) -> bool:
    """Whether `op` has a kernel of its own for `device` ("CPU" or "CUDA"), not PyTorch code."""
    if op in _composite_ops or not torch._C._dispatch_has_kernel(f"fastdiff::{op}"):
        return False
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(f"fastdiff::{op}", device))


def composite_kernel(op: str) -> bool:
    """Whether CPU and CUDA tensors are served by a composite of other ops."""
    return op in _composite_ops


def composite_calls(op: str, device: str) -> int:
    """How many calls the composite of `op` for `device` has served in this process."""
    return _composite_calls[op, device]


def triton_kernel(op: str) -> bool:
    """Whether the kernel of `op` for CUDA tensors is a Triton kernel."""
    return op in _triton_ops


def native_calls(op: str, device: str) -> int:
    """How many calls the native kernel of `op` for `device` has served in this process."""
    if device == "CUDA" and triton_kernel(op):
        return _triton_calls[op]
    if _native is None:
        return 0
    count = _native.fastdiff_native_calls
    count.argtypes, count.restype = [ctypes.c_char_p], ctypes.c_int64
    return int(count(f"{op}.{device.lower()}".encode()))


@functools.cache
def cpu_level() -> str:
    """The kind of x86-64 whose instructions the C++ kernels use, by its name in
    FASTDIFF_CPU_LEVEL, which may lower it: baseline, v3, v4, v4_bf16 or v4_amx."""
    assert _native is not None, _native_error
    level = _native.fastdiff_cpu_level
    level.restype = ctypes.c_char_p
    return str(level().decode())


def has_matrix_unit() -> bool:
    """Whether the C++ kernels multiply bfloat16 matrices by a unit of the processor's own (AMX)."""
    return _native is not None and bool(_native.fastdiff_has_matrix_unit())


def native_path() -> Path | None:
    """The native library's file, or None where none was built."""
    return next(iter(sorted(Path(__file__).parents[1].glob("_native*.so"))), None)


def native_error() -> str | None:
    """Why the native library is not in use, or None where it is."""
    return _native_error


def adopt(name: str, fake: Callable[..., Any]) -> None:
    """Give an op that the native library alone defines, if it is there, what the others have.

    That is a fake kernel, and the refusal of a gradient.
    """
    if torch._C._dispatch_has_kernel(f"fastdiff::{name}"):
        torch.library.register_fake(f"fastdiff::{name}", fake, lib=_library)
        op = getattr(torch.ops.fastdiff, name).default
        torch.library.register_autograd(f"fastdiff::{name}", _refuse_gradient(op), lib=_library)


def _default_kernel(name: str, reference: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(reference)
    def kernel(*args: Any, **kwargs: Any) -> Any:
        if any(tensor.is_cuda for tensor in _tensors(args)):
            no_triton = "triton is not installed" if _triton_source(reference) else None
            _miss_cuda_kernel(name, no_triton)
        return reference(*args, **kwargs)

    return kernel


def _triton_kernel(name: str, reference: Callable[..., Any]) -> Callable[..., Any]:
    def kernel(*args: Any) -> Any:
        try:
            module = importlib.import_module(f"{reference.__module__.rpartition('.')[0]}.triton")
            with torch.cuda.device_of(next(arg for arg in args if isinstance(arg, torch.Tensor))):
                result = getattr(module, name)(*args)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a broken triton must cost its speed alone
            said = str(error).strip().partition("\n")[0]
            _miss_cuda_kernel(name, f"its Triton kernel fails ({type(error).__name__}: {said})")
            return reference(*args)
        _triton_calls[name] += 1
        return result

    return kernel


def _counted(name: str, composite: Callable[..., Any]) -> Callable[..., Any]:
    def kernel(x: torch.Tensor, *args: Any) -> Any:
        _composite_calls[name, "CPU" if x.is_cpu else "CUDA"] += 1
        return composite(x, *args)

    return kernel


def _dispatched_where_needed(
    op: torch._ops.OpOverload,
    composite: Callable[..., Any],
    records: Callable[[torch.Tensor], bool],
) -> Callable[..., Any]:
    """The op, less its dispatch (20 us) where the composite's own calls need none around them."""

    def call(x: torch.Tensor, *args: Any) -> Any:
        if torch.compiler.is_compiling() or not (x.is_cpu or x.is_cuda):
            return op(x, *args)
        if torch.is_grad_enabled():
            return composite(x, *args) if records(x) else op(x, *args)
        with torch._C._AutoDispatchBelowAutograd():
            return composite(x, *args)

    return call


def _recorded_at_once(
    op: torch._ops.OpOverload,
    backward: Callable[..., Any],
    setup_context: Callable[..., Any],
) -> Callable[..., Any]:
    """The op, recorded by an autograd function without the dispatcher's own (30 us)."""

    class Recorded(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *args: Any) -> Any:
            with torch._C._AutoDispatchBelowAutograd():
                outputs = op(*args)
            setup_context(ctx, args, outputs)
            return outputs

    Recorded.backward = staticmethod(backward)  # type: ignore[method-assign]
    return Recorded.apply


def _below_autograd(op: torch._ops.OpOverload, recorded: Callable[..., Any]) -> Callable[..., Any]:
    """The op, past the dispatcher's autograd (10 us) where no gradient is recorded."""

    def call(*args: Any) -> Any:
        if torch.compiler.is_compiling() or torch.is_inference_mode_enabled():
            return op(*args)
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in _tensors(args)):
            return recorded(*args)
        with torch._C._AutoDispatchBelowAutograd():
            return op(*args)

    return call


def _triton_source(reference: Callable[..., Any]) -> bool:
    """Whether a triton.py lies beside the reference's file."""
    return Path(inspect.getfile(reference)).with_name("triton.py").exists()


@functools.cache
def _triton_found() -> bool:
    try:
        return importlib.util.find_spec("triton") is not None
    except ImportError:
        return False


def _miss_cuda_kernel(name: str, reason: str | None = None) -> None:
    reason = reason or _native_error or "the native library holds no CUDA kernel for it"
    message = (
        f"fastdiff::{name} runs its PyTorch reference on this CUDA tensor, since {reason}; "
        "`fastdiff doctor` says how to mend it"
    )
    if os.environ.get("FASTDIFF_STRICT") == "1":
        raise RuntimeError(f"{message}, and FASTDIFF_STRICT=0 allows it")
    _warn_once(message)


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=3)


def _refuse_gradient(op: torch._ops.OpOverload) -> Callable[..., Any]:
    def backward(ctx: Any, *grads: Any) -> Any:
        raise NotImplementedError(
            f"{op._schema.name} has no gradient; call it under torch.no_grad(), or detach its "
            "inputs"
        )

    return backward


def _tensors(args: Sequence[Any]) -> list[torch.Tensor]:
    """Those among the arguments, and those in lists among them."""
    tensors = []
    for arg in args:
        if isinstance(arg, (list, tuple)):
            tensors += _tensors(arg)
        elif isinstance(arg, torch.Tensor):
            tensors.append(arg)
    return tensors


def _guard_in_place(op: torch._ops.OpOverload) -> None:
    """Refuse a gradient at the call, and tell autograd which tensors the op has written to.

    `register_autograd` takes no op that writes to its arguments; this is what autograd's own code
    does for one.
    """
    name = op._schema.name.partition("::")[2]
    written = [i for i, a in enumerate(op._schema.arguments) if a.is_write]

    def autograd(keyset: Any, *args: Any) -> Any:
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in _tensors(args)):
            _refuse_gradient(op)(None)
        with torch._C._AutoDispatchBelowAutograd():
            return op.redispatch(keyset & torch._C._after_autograd_keyset, *args)

    def bump_versions(keyset: Any, *args: Any) -> Any:
        torch.autograd.graph.increment_version(_tensors([args[i] for i in written]))
        with torch._C._AutoDispatchBelowADInplaceOrView():
            return op.redispatch(keyset & torch._C._after_ADInplaceOrView_keyset, *args)

    _library.impl(name, autograd, "Autograd", with_keyset=True)
    _library.impl(name, bump_versions, "ADInplaceOrView", with_keyset=True)


def _load_native() -> tuple[ctypes.CDLL | None, str | None]:
    path = native_path()
    if path is None:
        return None, "fastdiff was installed without its native library"
    try:
        torch.ops.load_library(str(path))
        return ctypes.CDLL(str(path)), None
    except Exception as error:  # a broken library must cost its speed alone, never the import
        return None, f"{path.name} does not load ({error})"


_native, _native_error = _load_native()
