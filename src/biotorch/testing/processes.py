"""The check of two processes that train one network."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn
from torch.multiprocessing.spawn import spawn

from biotorch import rules, teaching
from biotorch.layers import FeedbackLayer, is_feedback
from biotorch.testing.subjects import assert_close, assert_identical, images, loss_of, net, optimizer_of


def check_processes(rule: str, **options: Any) -> None:
    """Two processes under torch's DDP have the same weights and feedback after 50 updates, which one would have."""
    with tempfile.TemporaryDirectory() as folder:
        address = f"file://{folder}/rendezvous"
        # The class brings its module with it, which registers the rule in the new process.
        arguments = (rules.get(rule), options, address, folder)
        spawn(_process, arguments, nprocs=2)  # type: ignore[no-untyped-call]
        first, second = (torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert_identical(first, second)
    model = net(rule, **options)
    _steps(model, model, slice(None), 1.0)
    assert_close(first, model.state_dict(), rtol=1e-3, atol=1e-4)


def _process(rank: int, kind: type[rules.Rule], options: dict[str, Any], address: str, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    model = net(kind.name, **options)
    ignored = [name for name, _ in model.named_buffers() if is_feedback(name)]
    nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, ignored)  # type: ignore[no-untyped-call]
    # DDP averages: each process counts its part of the sum twice.
    _steps(model, nn.parallel.DistributedDataParallel(model), slice(rank, None, 2), 2.0)
    torch.save(model.state_dict(), Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()


def _steps(model: nn.Module, forward: nn.Module, share: slice, factor: float) -> None:
    optimizer = optimizer_of(model)
    for seed in range(50):
        optimizer.zero_grad()
        # Targets that go with the example, not with its place among those of a process.
        with teaching.targets((torch.arange(4) % 3)[share], scale=0.01 * factor):
            loss = loss_of(forward(images(4, seed)[share])) * 0.01 * factor
            loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert any(isinstance(module, FeedbackLayer) for module in model.modules())
