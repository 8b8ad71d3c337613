"""The processes that torchrun started, seen from one of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from torch import Tensor, nn

T = TypeVar("T")

# The others may wait for a rank by a whole batch, or while the first saves, draws and validates;
# torchrun itself ends them all when one dies.
PATIENCE = timedelta(days=7)


@dataclass(frozen=True)
class Ranks:
    """This process is number `rank` of `size`, and number `local` on its machine."""

    rank: int = 0
    size: int = 1
    local: int = 0
    _wrapped: list[nn.Module] = field(default_factory=list, repr=False, compare=False)

    @property
    def first(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    def share(self, total: int) -> slice:
        """This rank's part of so many images, the parts in order of rank and of one size."""
        size = total // self.size
        return slice(self.rank * size, (self.rank + 1) * size)

    def agree(self, decide: Callable[[], T]) -> T:
        """What the first rank's `decide` returns, on every rank; what it raises goes up there
        alone. The other ranks then end with exit status 2, so that an error is told once.
        """
        if self.size == 1:
            return decide()
        import torch

        decided: list[Any] = [False, None]
        try:
            if self.first:
                decided = [True, decide()]
        finally:
            torch.distributed.broadcast_object_list(decided, device=torch.device("cpu"))
        if not decided[0]:
            raise SystemExit(2)
        return decided[1]

    def wait(self) -> None:
        """Until every rank is here."""
        if self.size > 1:
            import torch

            # On the CPU, where a sum is not there before all have sent their part.
            torch.distributed.all_reduce(torch.zeros(1))

    def gather(self, own: Tensor) -> Tensor:
        """The ranks' tensors, all [n], one behind the other."""
        if self.size == 1:
            return own
        import torch

        everyone = [torch.empty_like(own) for _ in range(self.size)]
        torch.distributed.all_gather(everyone, own.contiguous())
        return torch.cat(everyone)

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Make each tensor the mean of the ranks' own, in place."""
        if self.size == 1 or not tensors:
            return
        import torch

        together = torch.cat([tensor.flatten() for tensor in tensors])
        torch.distributed.all_reduce(together)
        for tensor, mean in zip(
            tensors, together.div_(self.size).split([t.numel() for t in tensors]), strict=True
        ):
            tensor.copy_(mean.view_as(tensor))

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model with gradients averaged over the ranks, from the same weights on all.

        The wrapper is emptied when `joined` ends, the model itself is not.
        """
        if self.size == 1:
            return model
        from torch.nn.parallel import DistributedDataParallel

        wrapped = DistributedDataParallel(model, gradient_as_bucket_view=True)
        self._wrapped.append(wrapped)
        return wrapped

    def _let_go(self) -> None:
        """Empty the wrappers, so that none is the last to hold the process group.

        A wrapper frees it with the interpreter's lock held and waits for its threads, while one of
        those may wait for the lock to free a tensor: neither would ever end.
        """
        for wrapped in self._wrapped:
            vars(wrapped).clear()


ALONE = Ranks()


@contextmanager
def joined() -> Iterator[Ranks]:
    """The ranks of this run: one, unless torchrun's variables tell of more.

    NCCL carries what they tell each other between GPUs, gloo between CPUs.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    import torch

    # Imported later it would keep the group, as its functions' default, and the group its threads:
    # one of those may want the interpreter while that ends, which aborts the process.
    import torch.distributed.nn.functional
    from torch import distributed

    on_gpus = torch.cuda.is_available()
    backends = "cpu:gloo,cuda:nccl" if on_gpus else "gloo"
    distributed.init_process_group(backends, timeout=PATIENCE)
    local = int(os.environ.get("LOCAL_RANK", "0"))
    ranks = Ranks(distributed.get_rank(), distributed.get_world_size(), local)
    try:
        yield ranks
    finally:
        ranks._let_go()
        distributed.destroy_process_group()
