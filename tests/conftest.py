"""What every test stands on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

# A red build is the change's own doing: the same examples each time, other ones by
# `pytest --hypothesis-profile=explore`. None is timed: the machine may be busy.
settings.register_profile("explore", derandomize=False, deadline=None)
settings.register_profile("same_examples", derandomize=True, deadline=None)
settings.load_profile("same_examples")


@pytest.fixture(autouse=True)
def one_thread(request: pytest.FixtureRequest) -> Iterator[None]:
    """Small tensors on many threads wait more than they work; `many_threads` marks the others."""
    threads = torch.get_num_threads()
    if "many_threads" not in request.keywords:
        torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
