"""What the ranks of a run tell each other, with gloo on the CPU."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from fastdiff.ranks import ALONE, joined
from tests.torchrun import torchrun

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
import sys
from pathlib import Path
import torch
from fastdiff.ranks import joined
from tests.threads import running, soon
before = running()
with joined() as ranks:
    from torch.distributed.nn.functional import all_reduce
    ranks.wait()
    assert running() > before
assert soon(lambda: running() == before)
(Path(sys.argv[1]) / f"done-{ranks.rank}").touch()
"""


def run(program: str, folder: Path, count: int) -> subprocess.CompletedProcess[str]:
    (folder / "program.py").write_text(program)
    return torchrun(count, folder / "program.py", folder)


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
