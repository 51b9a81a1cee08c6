"""What training/test_adversarial.py has torchrun start twice: adversarial training, and what each process saw.

torchrun --nproc-per-node 2 tests/helpers/adversarial_worker.py FOLDER
"""

import json
import os
import sys
from pathlib import Path

import runs
import torch

from biotorch._files import state_hash
from biotorch.experiment import Display, run


def main() -> None:
    """A run in which this process notes its weights after every update, and what it would make of one image."""

    class Watch(Display):
        def __init__(self):
            self.weights, self.examples = [], []

        def update(self, trainer):
            self.weights.append(state_hash(dict(trainer.model.named_parameters())))
            images = next(trainer.data.train.batches([torch.arange(1)]))
            example = trainer.adversary(*images, trainer.epoch, trainer.step, 0)
            self.examples.append(state_hash({"": example}))

    runs.register_small()
    torch.set_num_threads(1)
    folder, rank = Path(sys.argv[1]), os.environ["RANK"]
    watch = Watch()
    short = ("training.hyperparameters={epochs: 2, batch_size: 100, accumulate: 2}", "data.validation_size=1000")
    overrides = (*runs.EVERYTHING_MATTERS, *short, f"experiment.output_dir={folder}", runs.ADVERSARIAL)
    result = run(runs.quick(folder / f"rank{rank}", *overrides), display=watch)[""]
    seen = {"weights": watch.weights, "examples": watch.examples, "hash": result["state_hash"]}
    (folder / f"rank{rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main()
