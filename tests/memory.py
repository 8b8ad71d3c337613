"""What Linux tells of a process' memory."""

from __future__ import annotations

import re
from pathlib import Path


def flags_of_memory_at(address: int) -> list[str]:
    """Of the mapping that holds it; "hg" is the advice of huge pages."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if match := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(match[1], 16) <= address < int(match[2], 16)
        elif inside and line.startswith("VmFlags:"):
            return line.split()[1:]
    return []


def resident() -> float:
    """MB of memory that this process has."""
    return _megabytes("VmRSS", "/proc/self/status")


def lent() -> float:
    """MB of those that the system may take when it runs short."""
    return _megabytes("LazyFree", "/proc/self/smaps_rollup")


def _megabytes(name: str, file: str) -> float:
    return int(re.search(rf"{name}:\s+(\d+)", Path(file).read_text())[1]) / 1024  # type: ignore[index]
