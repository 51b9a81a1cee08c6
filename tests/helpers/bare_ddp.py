"""What system/test_other_trainers.py has torchrun start twice: a user's own DDP loop, in plain PyTorch.

torchrun --nproc-per-node 2 tests/helpers/bare_ddp.py FOLDER RULE ...
"""

from __future__ import annotations

import gc
import sys

import torch
from networks import batch, labels, mlp
from torch import distributed, nn
from torch.nn import functional as F

import biotorch


def main(folder: str, *rules: str) -> None:
    distributed.init_process_group("gloo")
    for rule in rules:
        train(rule, folder, distributed.get_rank())


def train(rule: str, folder: str, rank: int) -> None:
    torch.manual_seed(rank)  # ranks that were seeded apart: DDP's own broadcast has to make them one network
    model = biotorch.convert(mlp(), rule)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    wrapped = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1)
    for step in range(3):
        inputs, targets = batch(8) + step, labels(8)
        optimizer.zero_grad()
        F.cross_entropy(wrapped(inputs[rank::2]), targets[rank::2]).backward()
        optimizer.step()
    wrapped(batch(2))  # buffers are broadcast with the forward
    found = {
        "state": {name: value.clone() for name, value in model.state_dict().items()},
        "moved": {name: bool((p.detach() != before[name]).any()) for name, p in model.named_parameters()},
        "draws": [layer.feedback_draws for layer in model if isinstance(layer, biotorch.layers.FeedbackLayer)],
    }
    torch.save(found, f"{folder}/{rule}.{rank}")


if __name__ == "__main__":
    main(*sys.argv[1:])
    gc.collect()
    distributed.destroy_process_group()
    gc.collect()  # the wrapper holds threads of gloo, which can abort an interpreter that ends
