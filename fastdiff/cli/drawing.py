"""A run of ``fastdiff sample``: its batches, one after the other, into shards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import click

from fastdiff.cli.image_bar import image_bar
from fastdiff.cli.outputs import Outputs
from fastdiff.images import Pixels, to_uint8
from fastdiff.shards import Shards

if TYPE_CHECKING:
    from torch import Tensor

    from fastdiff.checkpoints import Pretrained
    from fastdiff.samplers import SampleStep

GIF_FRAMES = 60
GIF_IMAGES = 64


class Drawing:
    """Images 0 to num - 1 of a model; `model` is what is called, `settings` how."""

    def __init__(
        self,
        pretrained: Pretrained,
        model: Callable[..., Tensor],
        labels: Tensor | None,
        settings: dict[str, Any],
        outputs: Outputs,
        shards: Shards,
    ) -> None:
        self.pretrained, self.model, self.labels = pretrained, model, labels
        self.settings, self.outputs, self.shards = settings, outputs, shards
        classes = pretrained.num_classes
        self.columns = classes if classes and classes <= 16 else None

    @contextmanager
    def unfinished(self) -> Iterator[None]:
        """Whatever ends this block early leaves the finished batches, or no folder at all."""
        try:
            yield
        except BaseException:
            if done := self.shards.num_images():
                told = f"{done} of {self.shards.count} images are kept in {self.shards.folder}"
                click.echo(f"{told}; the same command goes on from there", err=True)
            else:
                self.shards.remove()
            raise

    def begin(self) -> tuple[int, list[int]]:
        """How many images are there from before, and the batches left to draw."""
        batches = self.shards.begin()
        before = self.shards.num_images()
        if self.outputs.gif is not None:  # its frames are not kept, so the first batch is drawn
            batches = sorted({0, *batches})
        return before, batches

    def draw(self, batches: Sequence[int], before: int, *, shown: bool) -> None:
        """Draw batches."""
        with image_bar(self.shards.count, before) if shown else nullcontext() as show:
            for batch in batches:
                self._draw_batch(batch, show)

    def finish(self) -> None:
        """Write the outputs from all shards, and remove these."""
        self.outputs.write(self.shards, self.labels, self.columns)
        self.shards.remove()

    def _draw_batch(self, batch: int, show: Callable[[float], None] | None) -> None:
        from fastdiff.samplers import sample

        pretrained, indices = self.pretrained, self.shards.indices(batch)
        there = self.shards.num_images() if show else 0
        frames: list[Pixels] = []

        def after_step(done: int, total: int) -> None:
            if show:
                show(there + len(indices) * done / total)

        images = sample(
            self.model,
            (len(indices), *pretrained.sample_shape),
            sample_index=indices.start,
            class_labels=None if self.labels is None else self.labels[indices],
            uncond_labels=pretrained.uncond_labels(len(indices), self.settings["guidance_scale"]),
            progress=after_step,
            callback=_keep(frames) if batch == 0 and self.outputs.gif else None,
            **pretrained.told,
            **self.settings,
        )
        if frames:
            self.outputs.write_gif(frames, self.columns)
        self.shards.write(batch, to_uint8(images))


def _keep(frames: list[Pixels]) -> Callable[[SampleStep], None]:
    """A callback that keeps some steps' first images, the last step's among them."""

    def after_step(done: SampleStep) -> None:
        every = -(-done.num_steps // GIF_FRAMES)
        if done.step == done.num_steps - 1 or done.step % every == 0:
            frames.append(to_uint8(done.x_prev[:GIF_IMAGES]))

    return after_step
