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
    return int(re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024  # type: ignore[index]
