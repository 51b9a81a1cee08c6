"""What system/test_distributed.py has torchrun start twice: runs that both processes take part in, and what each saw.

torchrun --nproc-per-node 2 tests/helpers/distributed_worker.py FOLDER
"""

import json
import os
import signal
import sys
from pathlib import Path

import runs
import torch
from networks import RULES

from biotorch._files import state_hash
from biotorch.experiment import Display, run

RANK = int(os.environ["RANK"])
FOLDER = Path(sys.argv[1])
EVERYTHING = (*runs.EVERYTHING_MATTERS, "training.hyperparameters={epochs: 3, batch_size: 100, accumulate: 2}")


class Watch(Display):
    """Notes the feedback after every update; sends this process a signal at one of them."""

    def __init__(self, stop_at=None, number=signal.SIGTERM):
        self.stop_at, self.number, self.feedback, self.weights = stop_at, number, [], []

    def update(self, trainer):
        state = trainer.model.state_dict()
        self.feedback.append(state_hash({name: value for name, value in state.items() if "feedback" in name}))
        self.weights.append(state_hash(dict(trainer.model.named_parameters())))
        if (trainer.epoch, trainer.step) == self.stop_at:
            os.kill(os.getpid(), self.number)


def attempt(folder, display, *overrides):
    """What became of a run: its hash, or the name and text of what it raised."""
    # One process writes the file that both read: in a folder of its own.
    study = runs.quick(FOLDER / f"rank{RANK}", *overrides, f"experiment.output_dir={FOLDER / folder}")
    try:
        return run(study, display=display)[""]["state_hash"]
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - looked at by the test
        return f"{type(error).__name__}: {error}"


def main():
    runs.register_small()
    torch.set_num_threads(1)
    seen = {}
    for rule in RULES:
        watch = Watch()
        seen[rule] = [attempt(rule, watch, *EVERYTHING, f"model.mode.type={rule}"), watch.feedback, watch.weights]
    for name, stopped in (("both", True), ("one", RANK == 1)):
        seen[f"{name} stopped"] = attempt(name, Watch((2, 1) if stopped else None), *EVERYTHING)
        seen[f"{name} continued"] = attempt(name, Watch(), *EVERYTHING)
    seen["other"] = attempt("both", Watch(), *EVERYTHING, "experiment.seed=8")
    seen["diverged"] = attempt("diverged", Watch(), *EVERYTHING, "training.optimizer={type: SGD, lr: 1e20}")
    one = ("training.hyperparameters={epochs: 3, batch_size: 1}",)
    seen["too small"] = attempt("too small", Watch(), *EVERYTHING, *one)
    (FOLDER / f"rank{RANK}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main()
