"""``fastdiff convert``."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(context_settings={"show_default": True})
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--to", type=click.Choice(["diffusers", "guided-diffusion"]), required=True)
@click.option("--image-size", type=click.IntRange(1), help="Of a side, in pixels.")
@click.option("--heads", type=click.IntRange(1), help="Attention heads at every resolution.")
@click.option("--head-channels", type=click.IntRange(1), help="Channels of one head, instead.")
@click.option("--new-attention-order", is_flag=True, help="guided-diffusion's other packing.")
@click.option("--schedule", type=click.Choice(["linear", "cosine"]), help="guided-diffusion's.")
@click.option("--timesteps", type=click.IntRange(1), default=1000, help="Of that schedule.")
@click.option("--rescale-timesteps/--no-rescale-timesteps", default=None)
@click.option("--prediction-type", type=click.Choice(["epsilon", "x_start"]))
def convert(
    source: Path,
    target: Path,
    to: str,
    image_size: int | None,
    heads: int | None,
    head_channels: int | None,
    new_attention_order: bool,
    schedule: str | None,
    timesteps: int,
    rescale_timesteps: bool | None,
    prediction_type: str | None,
) -> None:
    """Write SOURCE as TARGET in another dialect, whole or not at all.

    SOURCE is a folder in diffusers' format, or a file of weights of guided-diffusion,
    improved-diffusion or Ho's DDPM in PyTorch. A file does not tell everything: the other
    options say what it leaves out.
    """
    from fastdiff import checkpoints
    from fastdiff.checkpoints.guided_diffusion import schedule_of

    flags = checkpoints.convert(
        source,
        target,
        to,
        image_size=image_size,
        num_heads=heads,
        num_head_channels=head_channels,
        use_new_attention_order=new_attention_order,
        schedule=schedule_of(schedule, timesteps) if schedule else None,
        rescale_timesteps=rescale_timesteps,
        prediction_type=prediction_type,
    )
    click.echo(f"written: {target}")
    if flags:
        told = " ".join(f"--{name} {value}" for name, value in flags.items() if value is not None)
        click.echo(f"what guided-diffusion has to be told: {told}")
