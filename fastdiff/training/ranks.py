"""The processes of one run: who this one is, and what they tell each other."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, nn

# The others wait while the first draws samples, validates and saves.
PATIENCE = timedelta(hours=2)


@dataclass(frozen=True)
class Ranks:
    """One of `count` processes that share each step's images; alone it is the first of one."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    def share(self, total: int) -> slice:
        """This rank's part of that many images, the parts in order of rank."""
        size = total // self.count
        return slice(self.rank * size, (self.rank + 1) * size)

    def gather(self, own: Tensor) -> Tensor:
        """The ranks' tensors, all [n], one behind the other."""
        if self.count == 1:
            return own
        everyone = own.new_empty(self.count * len(own))
        torch.distributed.all_gather_into_tensor(everyone, own.contiguous())
        return everyone

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model with gradients averaged over the ranks, from the same weights on all."""
        if self.count == 1:
            return model
        return nn.parallel.DistributedDataParallel(
            model, broadcast_buffers=False, gradient_as_bucket_view=True
        )

    def wait(self) -> None:
        """Until all ranks are here."""
        if self.count > 1:
            torch.distributed.barrier()


@contextmanager
def joined(device: torch.device) -> Iterator[tuple[Ranks, torch.device]]:
    """This process among those that torchrun started, and its device; alone without torchrun.

    NCCL carries what they tell each other between GPUs, gloo between CPUs.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Ranks(), device
        return
    on_gpu = device.type == "cuda"
    if on_gpu:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("nccl" if on_gpu else "gloo", timeout=PATIENCE)
    try:
        yield Ranks(torch.distributed.get_rank(), torch.distributed.get_world_size()), device
    finally:
        torch.distributed.destroy_process_group()
