"""Many images: killed and resumed, shared among ranks, in flat memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from fastdiff import checkpoints
from fastdiff.images import to_uint8
from fastdiff.shards import Shards
from tests.cli.conftest import save_tiny_model

NUM, BATCH = 400, 16
# One thread, as torchrun gives each of several ranks: convolutions are cut by threads.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def command(model: Path, out: Path, *options: object) -> list[str]:
    arguments = ["-m", "fastdiff", "sample", model, "--num", NUM, "--batch-size", BATCH]
    arguments += ["--sampler", "ddpm", "--steps", 20, "--seed", 5, "--out", out, *options]
    return [sys.executable, *map(str, arguments)]


def two_ranks(arguments: list[str]) -> list[str]:
    """The same command under torchrun."""
    python, *module, command = arguments[:4]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return [python, *launcher, *module, "--", command, *arguments[4:]]


def run(arguments: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    environment = {**ENVIRONMENT, **environment}
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def unbroken(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    out = tmp_path_factory.mktemp("unbroken") / "all.npz"
    run(command(tiny_model, out))
    assert [file.name for file in out.parent.iterdir()] == ["all.npz"]
    return out.read_bytes()


def stop(arguments: list[str], folder: Path, shards: int, number: int) -> tuple[int, str]:
    """Send a signal once so many batches are there; the exit status and the error output."""
    with subprocess.Popen(
        arguments,
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell may ignore it
    ) as process:
        while len([*folder.glob("[0-9]*.npy")]) < shards:
            assert process.poll() is None
            time.sleep(0.002)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    return process.returncode, errors


def test_a_killed_run_goes_on_to_the_same_bytes(
    tiny_model: Path, tmp_path: Path, unbroken: bytes
) -> None:
    out = tmp_path / "all.npz"
    folder = tmp_path / "all.npz.parts"
    for shards in (3, 11):  # killed twice
        status, _ = stop(command(tiny_model, out), folder, shards, signal.SIGKILL)
        assert status == -signal.SIGKILL
        assert not out.exists()
    kept = {file: file.stat().st_mtime_ns for file in folder.glob("[0-9]*.npy")}
    assert 11 <= len(kept) < NUM / BATCH
    told = run(command(tiny_model, out)).stdout
    assert f"{NUM - BATCH * len(kept)} images in" in told
    assert f"{BATCH * len(kept)} of {NUM} images were there" in told
    assert out.read_bytes() == unbroken
    assert [file.name for file in tmp_path.iterdir()] == ["all.npz"]


def test_a_run_killed_while_it_writes_the_npz_goes_on(
    tiny_model: Path, tmp_path: Path, unbroken: bytes
) -> None:
    out = tmp_path / "all.npz"
    stop(command(tiny_model, out), tmp_path / "all.npz.parts", 25, signal.SIGKILL)
    (tmp_path / "all.npz.parts").mkdir(exist_ok=True)
    (tmp_path / "all.npz.parts" / ".all.npz").write_bytes(unbroken[:1000])
    run(command(tiny_model, out))
    assert out.read_bytes() == unbroken


def test_the_images_are_those_of_the_sampler(
    tiny_model: Path, unbroken: bytes, tmp_path: Path
) -> None:
    (tmp_path / "all.npz").write_bytes(unbroken)
    with np.load(tmp_path / "all.npz") as arrays:
        images, labels = arrays["arr_0"], arrays["arr_1"]
    np.testing.assert_array_equal(labels, np.arange(NUM) % 3)
    assert len(np.unique(images, axis=0)) == NUM
    drawn = checkpoints.load(tiny_model).sample(
        NUM, sampler="ddpm", steps=20, seed=5, batch_size=100
    )
    assert np.abs(to_uint8(drawn).astype(int) - images).max() <= 1


def test_two_ranks_draw_what_one_does(tiny_model: Path, tmp_path: Path, unbroken: bytes) -> None:
    out = tmp_path / "all.npz"
    done = run(two_ranks(command(tiny_model, out)))
    assert out.read_bytes() == unbroken
    assert done.stdout.count("images/s") == 1
    assert [file.name for file in tmp_path.iterdir()] == ["all.npz"]


def test_what_two_ranks_left_one_finishes(
    tiny_model: Path, tmp_path: Path, unbroken: bytes
) -> None:
    out = tmp_path / "all.npz"
    alone = command(tiny_model, out)
    stop(two_ranks(alone), tmp_path / "all.npz.parts", 5, signal.SIGTERM)
    assert not out.exists()
    assert "were there from an earlier run" in run(alone).stdout
    assert out.read_bytes() == unbroken


def test_an_error_of_two_ranks_is_told_once(tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "all.npz"
    stop(command(tiny_model, out), tmp_path / "all.npz.parts", 1, signal.SIGKILL)
    other = command(tiny_model, out, "--eta", 0, "--seed", 6)
    done = subprocess.run(two_ranks(other), env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode != 0
    assert done.stderr.count("seed 5, not 6") == 1
    assert done.stderr.count("fastdiff: ") == 1


def test_ctrl_c_says_where_the_images_are(
    tiny_model: Path, tmp_path: Path, unbroken: bytes
) -> None:
    out = tmp_path / "all.npz"
    status, errors = stop(command(tiny_model, out), tmp_path / "all.npz.parts", 2, signal.SIGINT)
    assert status == 130
    assert "Traceback" not in errors and "interrupted" in errors
    assert f"of {NUM} images are kept in {out}.parts; the same command goes on" in errors
    run(command(tiny_model, out))
    assert out.read_bytes() == unbroken


def test_ctrl_c_before_the_first_batch_leaves_nothing(tiny_model: Path, tmp_path: Path) -> None:
    arguments = command(tiny_model, tmp_path / "all.png", "--steps", 100, "--batch-size", NUM)
    folder = tmp_path / "all.png.parts"
    with subprocess.Popen(
        arguments,
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        while not (folder / "settings.json").exists():
            assert process.poll() is None
            time.sleep(0.002)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors and "interrupted" in errors
    assert not [*tmp_path.iterdir()]


def interrupted_after(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Ctrl-C come when a method of Shards has done its work."""
    method = getattr(Shards, name)

    def interrupted(*arguments: object) -> None:
        method(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(Shards, name, interrupted)


@pytest.mark.parametrize("name", ["check", "begin"])
def test_ctrl_c_at_the_very_beginning_leaves_nothing(
    name: str, tiny_model: Path, tmp_path: Path, fastdiff, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted_after(name, monkeypatch)
    outcome = fastdiff(*command(tiny_model, tmp_path / "all.npz")[3:])
    assert outcome.status == 130 and "kept in" not in outcome.err
    assert not [*tmp_path.iterdir()]


def test_ctrl_c_while_the_npz_is_written_tells_what_is_kept(
    tiny_model: Path, tmp_path: Path, fastdiff
) -> None:
    out = tmp_path / "all.npz"
    with pytest.MonkeyPatch.context() as monkeypatch:
        interrupted_after("join", monkeypatch)
        outcome = fastdiff(*command(tiny_model, out)[3:])
    assert outcome.status == 130
    assert f"{NUM} of {NUM} images are kept in {out}.parts; the same command" in outcome.err
    assert f"{NUM} of {NUM} images were there" in fastdiff(*command(tiny_model, out)[3:]).out
    assert len(np.load(out)["arr_0"]) == NUM and [*tmp_path.iterdir()] == [out]


def test_another_model_is_not_taken_for_the_same(
    tiny_model: Path, classless_model: Path, tmp_path: Path, fastdiff
) -> None:
    out = tmp_path / "all.npz"
    stop(command(tiny_model, out), tmp_path / "all.npz.parts", 1, signal.SIGKILL)
    outcome = fastdiff(*command(classless_model, out)[3:])
    assert outcome.status == 2
    assert "unfinished run of other settings (model " in outcome.err


PEAK = """
import resource, sys
from fastdiff.cli import main
try:
    main()
finally:
    print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_the_images(tmp_path: Path) -> None:
    """A hundred megabytes of pixels, had they been kept."""
    model = save_tiny_model(
        tmp_path / "model", size=128, image_channels=3, channels=4, multipliers=(1,) * 5
    )

    def peak(num: int) -> int:
        out = tmp_path / f"{num}.npz"
        options = ["--num", num, "--batch-size", 20, "--steps", 1, "--out", out]
        arguments = [sys.executable, "-c", PEAK, "sample", str(model), *map(str, options)]
        # Left to itself glibc's threshold moves, and the peak with it by 40 MB at random.
        done = run(arguments, MALLOC_MMAP_THRESHOLD_="65536")
        assert out.stat().st_size > num * 128 * 128 * 3
        return int(done.stdout.split("peak")[1])

    assert peak(2000) - peak(200) < 8 * 1024  # KiB
