"""What system/test_sharded.py has torchrun start twice: DDP with frozen weights, ZeRO and FSDP2 in a user's own loop.

torchrun --nproc-per-node 2 tests/helpers/sharded_worker.py FILE
"""

from __future__ import annotations

import contextlib
import gc
import sys

import torch
from networks import batch, labels, mlp
from torch import distributed, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import biotorch

STEPS, WHOLE = 4, StateDictOptions(full_state_dict=True)
SETTINGS = {"lr": 0.05, "weight_decay": 0.1}


def network(rule: str, **options) -> nn.Sequential:
    torch.manual_seed(0)
    return biotorch.convert(mlp().double(), rule, seed=1, **options)


def train(run, model, optimizer, rank: int | None = None, steps: int = STEPS, tells: bool = False):
    for step in range(steps):
        x, y = batch(8).double() + step, labels(8)
        mine = slice(None) if rank is None else slice(rank, None, 2)
        optimizer.zero_grad()
        cross_entropy(run(x[mine]), y[mine]).backward()
        optimizer.step()
        if tells:
            biotorch.updated(model)
    return model


def alone(rule: str) -> dict:
    model = network(rule)
    return train(model, model, torch.optim.AdamW(model.parameters(), **SETTINGS)).state_dict()


def by_zero(rule: str, rank: int) -> dict:
    model = network(rule)
    optimizer = ZeroRedundancyOptimizer(model.parameters(), torch.optim.AdamW, **SETTINGS)
    return train(DistributedDataParallel(model), model, optimizer, rank).state_dict()


def by_shards(rule: str, rank: int) -> dict:
    model = network(rule)
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer)
    fully_shard(model)
    with contextlib.suppress(biotorch.AuditError):
        biotorch.audit(model, batch(8).double())
        raise AssertionError("a sharded network must not be audited")
    train(model, model, torch.optim.AdamW(model.parameters(), **SETTINGS), rank, tells=rule in ("brsf", "wm"))
    state = get_model_state_dict(model, options=WHOLE)
    other = network(rule)
    fully_shard(other)
    set_model_state_dict(other, dict(state), options=WHOLE)  # it puts shards into what it is given
    again = get_model_state_dict(other, options=WHOLE)
    assert all(torch.equal(again[name], value) for name, value in state.items())
    return state


def by_frozen(rule: str, rank: int) -> dict:
    model = network(rule)
    model[0].weight.requires_grad_(False)
    wrapped = DistributedDataParallel(model)  # waits for every parameter that wants a gradient
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], **SETTINGS)
    return train(wrapped, model, optimizer, rank).state_dict()


def by_looking(rule: str, rank: int) -> dict:
    """DDP broadcasts B at every forward pass: what the first process alone has looked at is not done twice."""
    model = network(rule)
    wrapped, optimizer = DistributedDataParallel(model), torch.optim.AdamW(model.parameters(), **SETTINGS)
    for step in range(STEPS):
        optimizer.zero_grad()
        cross_entropy(wrapped(batch(8).double()[rank::2] + step), labels(8)[rank::2]).backward()
        optimizer.step()
        if rank == 0:
            biotorch.metrics.norm_ratios(model)
    return model.state_dict()


def refused(rule: str, **options) -> str:
    model = network(rule, **options)
    fully_shard(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    try:
        train(model, model, optimizer, steps=10, tells=bool(options))
    except RuntimeError as error:
        return str(error)
    return ""


def main(path: str) -> None:
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    found = {}
    for rule in ("kp", "dkp", "brsf", "wm"):
        found[rule] = {"alone": alone(rule), "ZeRO": by_zero(rule, rank), "FSDP2": by_shards(rule, rank)}
    for rule in ("sa", "wm"):
        found.setdefault(rule, {"alone": alone(rule)})["looked at"] = by_looking(rule, rank)
    for rule in ("kp", "dkp"):
        found[rule]["frozen"] = by_frozen(rule, rank)
    found["unseen"], found["constrained"] = refused("brsf"), refused("fa", constrain_weights=True)
    torch.save(found, f"{path}.{rank}")


if __name__ == "__main__":
    main(*sys.argv[1:])
    gc.collect()  # DDP wrappers hold threads of gloo, which can abort an interpreter that ends
    distributed.destroy_process_group()
    gc.collect()
