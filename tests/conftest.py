"""What every test stands on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread(request: pytest.FixtureRequest) -> Iterator[None]:
    """Small tensors on many threads wait more than they work; `many_threads` marks the others."""
    threads = torch.get_num_threads()
    if "many_threads" not in request.keywords:
        torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
