"""The processes that torchrun started, seen from one of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

T = TypeVar("T")

# A rank may be a whole batch behind another; torchrun itself ends them all when one dies.
PATIENCE = timedelta(days=7)


@dataclass(frozen=True)
class Ranks:
    """This process is number `rank` of `size`, and number `local` on its machine."""

    rank: int = 0
    size: int = 1
    local: int = 0

    def agree(self, decide: Callable[[], T]) -> T:
        """What rank 0's `decide` returns, on every rank; what it raises goes up there alone.

        The other ranks then end with exit status 2, so that an error is told once.
        """
        if self.size == 1:
            return decide()
        from torch import distributed

        decided: list[Any] = [False, None]
        try:
            if self.rank == 0:
                decided = [True, decide()]
        finally:
            distributed.broadcast_object_list(decided)
        if not decided[0]:
            raise SystemExit(2)
        return decided[1]

    def wait(self) -> None:
        """Until every rank is here."""
        if self.size > 1:
            from torch import distributed

            distributed.barrier()


ALONE = Ranks()


@contextmanager
def joined() -> Iterator[Ranks]:
    """The ranks of this run: one, unless torchrun's variables tell of more."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    from torch import distributed

    distributed.init_process_group("gloo", timeout=PATIENCE)
    try:
        local = int(os.environ.get("LOCAL_RANK", "0"))
        yield Ranks(distributed.get_rank(), distributed.get_world_size(), local)
    finally:
        distributed.destroy_process_group()
