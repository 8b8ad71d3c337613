"""One rank of a run, for torchrun: rank_worker.py <config.yaml> <folder> <what goes wrong>."""

import dataclasses
import signal
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from fastdiff.ranks import joined
from fastdiff.training import TrainConfig, Trainer
from tests.threads import running, soon

settings, folder, spoil = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
torch.set_num_threads(1)
device = torch.device("cpu")
with joined() as ranks:
    config = TrainConfig.load(settings)
    if spoil == "resumed":
        trainer = Trainer.resume(folder, device, ranks=ranks, steps=config.steps)
    else:
        steps = 3 if spoil == "stopped early" else config.steps
        stopped = dataclasses.replace(config, steps=steps)
        trainer = Trainer.start(stopped, folder, device, ranks=ranks)
    last = ranks.rank == ranks.size - 1
    if spoil == "nan on the last rank" and last:
        trainer.learner.model.conv_in.weight.register_hook(
            lambda gradient: gradient * (float("nan") if trainer.step == 2 else 1)
        )
    if spoil == "signal to the last rank" and last:
        learner_step = trainer.learner.step

        def step(*arguments, **named):
            if trainer.step == 2:
                signal.raise_signal(signal.SIGTERM)
            return learner_step(*arguments, **named)

        trainer.learner.step = step
    try:
        trainer.run()
    except KeyboardInterrupt:
        print(f"rank {ranks.rank} was interrupted after step {trainer.step}")
    tensors = {name: t.clone().contiguous() for name, t in trainer.learner.state._tensors().items()}
    save_file(tensors, folder / f"rank{ranks.rank}.safetensors")
    print(f"rank {ranks.rank} skipped {trainer.skipped}")
    had = bool(running("pt_gloo_runloop"))
# The trainer, and in it what DDP made, is still held here.
ended = soon(lambda: not running("pt_gloo_runloop"))
print(f"rank {ranks.rank} had the group's threads: {had}, has: {not ended}")
