"""Worker process of `check_processes`: `python -m biotorch.testing.worker FOLDER RANK`."""

from __future__ import annotations

import gc
import importlib
import pickle
import sys
from pathlib import Path

import torch
from torch import distributed, nn

from biotorch.layers import is_feedback
from biotorch.testing.network import net
from biotorch.testing.processes import Job, steps


def main(folder: Path, rank: int) -> None:
    """Read the job in `folder`, train, and save the states there."""
    job: Job = pickle.loads((folder / "job").read_bytes())
    for module in job["modules"]:
        importlib.import_module(module)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    states = {}
    for rule, options in job["wanted"].items():
        model = net(rule, **options)
        ignored = [name for name, _ in model.named_buffers() if is_feedback(name)]
        nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, ignored)  # type: ignore[no-untyped-call]
        # DDP averages over two processes, so the factor 2 restores the sum.
        steps(model, nn.parallel.DistributedDataParallel(model), slice(rank, None, 2), 2.0)
        states[rule] = model.state_dict()
    torch.save(states, folder / f"{rank}.pt")
    distributed.destroy_process_group()
    gc.collect()  # the wrappers hold gloo threads, which can abort the interpreter at exit


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
