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


class NumberList(click.ParamType):  # type: ignore[type-arg]
    """Numbers with commas between, as a tuple; an empty text is an empty tuple."""

    def __init__(self, kind: type[int] | type[float]) -> None:
        self.kind = kind
        self.name = f"{kind.__name__},..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return tuple(self.kind(part) for part in value.split(",") if part)
        except ValueError:
            example = "whole numbers such as 1,2,4" if self.kind is int else "numbers"
            self.fail(f"{value!r} is no list of {example}", param, ctx)


class SectionOption(click.Option):
    """An option that the help shows under its section, a flag by the name that changes it."""

    def __init__(self, *args: Any, section: str = "Run", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.section = section

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        record = super().get_help_record(ctx)
        if record is None or not self.secondary_opts:
            return record
        return (self.secondary_opts if self.default else self.opts)[0], self.help or ""


class SectionCommand(click.Command):
    """A command of so many options that its help groups them by section."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None and isinstance(param, click.Option):
                sections.setdefault(getattr(param, "section", "Run"), []).append(record)
        for section, records in sections.items():
            with formatter.section(section):
                formatter.write_dl(records)


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
        if ranks.size > 1 and device.type == "cuda":
            torch.cuda.set_device(device)  # NCCL goes by it
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise click.UsageError(f"device {name!r} cannot be used here: {reason}") from error
    return device
