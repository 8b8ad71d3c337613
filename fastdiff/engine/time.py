"""The time embedding and what every residual block makes of it, computed ahead for a whole run."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastdiff.models import UNet
from fastdiff.models.blocks import ResidualBlock

MOST_AHEAD = 256 * 2**20  # bytes of projections that are kept for the steps of a run


class TimeProjections(nn.Module):
    """t and the class labels -> the projections of all residual blocks, side by side.

    One product of matrices stands for those of all blocks. `prepare` makes it for all steps of a
    run at once; without class labels a step is then a row of a table.
    """

    def __init__(self, unet: UNet, blocks: Iterable[ResidualBlock]) -> None:
        super().__init__()
        layers = [block.time_emb_proj for block in blocks]
        self.weight = torch.cat([layer.weight.detach() for layer in layers])
        self.bias = torch.cat([layer.bias.detach() for layer in layers])
        self.widths = [layer.out_features for layer in layers]
        embedding = (unet.time_proj, unet.time_embedding, unet.class_embedding)
        self.time_proj, self.time_embedding, self.class_embedding = copy.deepcopy(embedding)
        self.by_timestep = unet.config.class_embed_type == "timestep"
        self.timesteps: Tensor | None = None
        self.embeddings: Tensor | None = None
        self.projections: Tensor | None = None

    @torch.no_grad()
    def prepare(self, timesteps: Tensor) -> None:
        """Compute ahead what the steps t [S] need."""
        self.timesteps = timesteps.unique()
        self.embeddings = self._embedded(self.timesteps)
        size = len(self.timesteps) * self.weight.shape[0] * self.weight.element_size()
        without_labels = self.class_embedding is None and size <= MOST_AHEAD
        self.projections = self._projected(self.embeddings) if without_labels else None

    def forward(self, t: Tensor, class_labels: Tensor | None) -> tuple[Tensor, ...]:
        """t [N], class_labels [N] or None -> for each block [N, channels] or [N, 2 * channels]."""
        samples = len(t)
        t = t[:1] if t.stride() == (0,) else t
        rows = self._known_rows(t)
        if rows is not None and self.projections is not None:
            projected = self.projections[rows]
        else:
            embedding = self._embedded(t)
            if rows is not None and self.embeddings is not None:
                embedding = self.embeddings[rows]
            if self.class_embedding is not None:
                embedding = embedding + self._of_class(class_labels).to(embedding.dtype)
            projected = self._projected(embedding)
        return projected.expand(samples, -1).split(self.widths, dim=1)

    def _known_rows(self, t: Tensor) -> Tensor | None:
        """The rows of `timesteps` that hold t, where all of them do."""
        if self.timesteps is None or t.dtype != self.timesteps.dtype:
            return None
        rows = torch.searchsorted(self.timesteps, t).clamp_max(len(self.timesteps) - 1)
        return rows if torch.equal(self.timesteps[rows], t) else None

    def _embedded(self, t: Tensor) -> Tensor:
        embedded: Tensor = self.time_embedding(self.time_proj(t))
        return embedded

    def _of_class(self, labels: Tensor | None) -> Tensor:
        assert self.class_embedding is not None
        if self.by_timestep:
            labels = self.time_proj(labels)
        of_class: Tensor = self.class_embedding(labels)
        return of_class

    def _projected(self, embedding: Tensor) -> Tensor:
        return F.linear(F.silu(embedding), self.weight, self.bias)
