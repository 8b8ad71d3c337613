"""The time embedding and what every residual block makes of it, computed ahead for a whole run."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastdiff.models import UNet
from fastdiff.models.blocks import ResidualBlock

MOST_AHEAD = 256 * 2**20  # bytes of projections that are kept for the steps of a run


@dataclass(frozen=True)
class Ahead:
    """What the steps of a run need of time, a row a step: t [S], embeddings [S, E], and the blocks'
    projections [S, P] unless classes have a say in them, or they are large."""

    timesteps: Tensor
    embeddings: Tensor
    projections: Tensor | None


class TimeProjections(nn.Module):
    """t and the class labels -> the projections of all residual blocks, side by side.

    One product of matrices stands for those of all blocks. `ahead` makes it for all steps of a run
    at once; without class labels a step is then a row of a table. `shifts` are added to the
    projections, None where a block has none.
    """

    def __init__(
        self, unet: UNet, blocks: Iterable[ResidualBlock], shifts: Iterable[Tensor | None] = ()
    ) -> None:
        super().__init__()
        blocks = [*blocks]
        layers = [block.time_emb_proj for block in blocks]
        self.weight = torch.cat([layer.weight.detach() for layer in layers])
        biases = [layer.bias.detach() for layer in layers]
        for i, shift in enumerate(shifts):
            if shift is not None:
                biases[i] = (biases[i].double() + shift.double()).to(biases[i].dtype)
        self.bias = torch.cat(biases)
        self.parts = [2 if block.scale_shift else 1 for block in blocks]
        self.widths = [
            layer.out_features // parts
            for layer, parts in zip(layers, self.parts, strict=True)
            for _ in range(parts)
        ]
        embedding = (unet.time_proj, unet.time_embedding, unet.class_embedding)
        self.time_proj, self.time_embedding, self.class_embedding = copy.deepcopy(embedding)
        self.by_timestep = unet.config.class_embed_type == "timestep"

    @torch.no_grad()
    def ahead(self, timesteps: Tensor) -> Ahead:
        """What the steps t [S] of a run need."""
        embeddings = self._embedded(timesteps)
        size = len(timesteps) * self.weight.shape[0] * self.weight.element_size()
        without_labels = self.class_embedding is None and size <= MOST_AHEAD
        projections = self._projected(embeddings) if without_labels else None
        return Ahead(timesteps, embeddings, projections)

    def forward(self, t: Tensor, class_labels: Tensor | None) -> Tensor:
        """t [N], class_labels [N] or None -> the projections [N, P], or [1, P] for all samples."""
        one = t[:1] if t.stride() == (0,) else t
        return self._with_class(self._embedded(one), class_labels)

    def of_row(self, ahead: Ahead, row: Tensor, class_labels: Tensor | None) -> Tensor:
        """As forward, at timesteps[row] for all samples; row [1]."""
        if ahead.projections is not None:
            return ahead.projections.index_select(0, row)
        return self._with_class(ahead.embeddings.index_select(0, row), class_labels)

    def by_block(self, projections: Tensor, samples: int) -> Iterator[tuple[Tensor, ...]]:
        """What `forward` gives -> for each block [N, channels], with AdaGN the scale and the shift,
        [N, channels] both."""
        pieces = iter(projections.expand(samples, -1).split(self.widths, dim=1))
        return (tuple(itertools.islice(pieces, parts)) for parts in self.parts)

    def _embedded(self, t: Tensor) -> Tensor:
        embedded: Tensor = self.time_embedding(self.time_proj(t))
        return embedded

    def _with_class(self, embedding: Tensor, labels: Tensor | None) -> Tensor:
        if self.class_embedding is not None:
            if self.by_timestep:
                labels = self.time_proj(labels)
            embedding = embedding + self.class_embedding(labels).to(embedding.dtype)
        return self._projected(embedding)

    def _projected(self, embedding: Tensor) -> Tensor:
        return F.linear(F.silu(embedding), self.weight, self.bias)
