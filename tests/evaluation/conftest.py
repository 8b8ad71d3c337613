"""torch-fidelity without torchvision, which would bring another torch with it."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest


class Anything(types.ModuleType):
    """A module that holds a class by every name; torch-fidelity takes data sets from it."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


@pytest.fixture(autouse=True, scope="session")
def torchvision() -> Iterator[None]:
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        for name in ("", ".datasets", ".models", ".transforms", ".transforms.functional"):
            module = sys.modules[f"torchvision{name}"] = Anything(f"torchvision{name}")
            parent, _, last = f"torchvision{name}".rpartition(".")
            if parent:
                setattr(sys.modules[parent], last, module)
    yield
    for name in [name for name in sys.modules if name.startswith("torchvision")]:
        if isinstance(sys.modules[name], Anything):
            del sys.modules[name]
