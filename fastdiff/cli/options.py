"""Options and types that several commands share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from fastdiff.ranks import ALONE, Ranks

if TYPE_CHECKING:
    import torch

device_option = click.option(
    "--device", default="auto", help="auto, cpu, cuda or cuda:N; auto takes a GPU if there is one."
)


class IntList(click.ParamType):  # type: ignore[type-arg]
    """Whole numbers with commas between, as a tuple; an empty text is an empty tuple."""

    name = "int,int,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(int(part) for part in value.split(",") if part)
        except ValueError:
            self.fail(f"{value!r} is no list of whole numbers such as 1,2,4", param, ctx)


def resolve_device(name: str, ranks: Ranks = ALONE) -> torch.device:
    """The device of ``--device``; one sentence where it is not to be had.

    Under torchrun "cuda" is the GPU of this process's number on its machine.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and ranks.size > 1:
        name = f"cuda:{ranks.local}"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise click.UsageError(f"device {name!r} cannot be used here: {reason}") from error
    return device
