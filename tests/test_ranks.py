"""What the ranks of a run tell each other, with gloo on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastdiff.ranks import ALONE, joined

LATE = """
import sys, time
from pathlib import Path
from fastdiff.ranks import joined
folder = Path(sys.argv[1])
with joined() as ranks:
    for late in range(ranks.size):
        if ranks.rank == late:
            time.sleep(0.7)
        (folder / f"{late}-{ranks.rank}").touch()
        ranks.wait()
        assert len([*folder.glob(f"{late}-*")]) == ranks.size, (late, ranks.rank)
        ranks.wait()
    assert ranks.agree(lambda: ["only", ranks.rank]) == ["only", 0]
    if ranks.first:
        (folder / "done").touch()
"""

# As what loads a model does, it imports more of torch once the group is there.
ENDED = """
import os, sys
from pathlib import Path
import torch
from fastdiff.ranks import joined
before = set(os.listdir("/proc/self/task"))
with joined() as ranks:
    from torch.distributed.nn.functional import all_reduce
    ranks.wait()
    assert set(os.listdir("/proc/self/task")) > before
assert set(os.listdir("/proc/self/task")) == before
(Path(sys.argv[1]) / f"done-{ranks.rank}").touch()
"""


def run(program: str, folder: Path, count: int) -> subprocess.CompletedProcess[str]:
    (folder / "program.py").write_text(program)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    return subprocess.run(
        [sys.executable, *launcher, folder / "program.py", folder],
        capture_output=True, text=True, timeout=120, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.mark.parametrize("count", [2, 5])
def test_all_wait_for_the_last_whoever_it_is(tmp_path: Path, count: int) -> None:
    done = run(LATE, tmp_path, count)
    assert done.returncode == 0 and (tmp_path / "done").exists(), done.stderr[-2000:]


def test_no_thread_outlives_the_group(tmp_path: Path) -> None:
    """One that does may want the interpreter while that ends, which aborts the process."""
    done = run(ENDED, tmp_path, 2)
    assert done.returncode == 0 and len([*tmp_path.glob("done-*")]) == 2, done.stderr[-2000:]


def test_alone_nothing_is_asked_of_anyone() -> None:
    with joined() as ranks:
        assert ranks is ALONE and ranks.first and ranks.agree(lambda: 7) == 7
        ranks.wait()
