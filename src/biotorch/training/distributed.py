"""Processes and devices of a run, through lightning-fabric, and the exchange of values between its processes."""

from __future__ import annotations

import atexit
import gc
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import distributed, nn
from torch.distributed import all_gather_object, all_reduce, broadcast
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from biotorch._files import state_hash
from biotorch.errors import SectionError
from biotorch.layers import is_feedback
from biotorch.training.settings import InfrastructureConfig

if TYPE_CHECKING:  # lightning-fabric takes seconds to import, and configurations are read without it
    from lightning_fabric import Fabric
    from lightning_fabric.strategies.ddp import DDPStrategy

_T = TypeVar("_T")


def launch(config: InfrastructureConfig) -> Fabric:
    """Start the processes of a run; under torchrun and Slurm, join those that they have started.

    Raises:
        SectionError: the processes that torchrun or Slurm has started do not fit the section.

    Warns:
        UserWarning: there is no CUDA device for `gpus`, or fp16 was asked for on the CPU.

    Examples:
        >>> fabric = biotorch.training.launch(biotorch.training.InfrastructureConfig())
        >>> fabric.device.type, fabric.world_size
        ('cpu', 1)
    """
    from lightning_fabric import Fabric

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # the results hold the same facts
    # cuBLAS is deterministic only with this setting, which it reads at its first use.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    started = _processes_started(config.num_nodes)
    accelerator, devices = _devices(config.gpus, started)
    precision = config.precision
    if precision == "16-mixed" and accelerator == "cpu":
        warnings.warn(
            "infrastructure.precision: the CPU does not support 16-mixed, so bf16-mixed is used", stacklevel=2
        )
        precision = "bf16-mixed"
    processes = config.num_nodes * (devices if isinstance(devices, int) else len(devices))
    try:
        with _no_advice_of_srun():
            fabric = Fabric(
                accelerator=accelerator,
                devices=devices,
                num_nodes=config.num_nodes,
                strategy=summing_ddp() if processes > 1 or config.strategy == "ddp" else "auto",
                precision=precision,
            )
            fabric.launch()
    except (ValueError, RuntimeError) as error:  # the processes of torchrun or Slurm do not fit
        raise SectionError({"": str(error)}) from error
    if distributed.is_initialized():
        atexit.unregister(_leave)  # a sweep launches once for every point
        atexit.register(_leave)
    return fabric


def _leave() -> None:
    """End gloo's threads before the interpreter shuts down: a thread that frees a tensor then aborts the process."""
    if distributed.is_initialized():
        distributed.destroy_process_group()
        gc.collect()  # a DDP wrapper keeps the threads alive, and is part of a reference cycle


def one_process() -> Fabric:
    """Create the Fabric of a single process on the CPU."""
    from lightning_fabric import Fabric

    with _no_advice_of_srun():
        return Fabric(accelerator="cpu", devices=1)


def one_of_several() -> bool:
    """Whether torchrun or Slurm has started this process as one of several of a run."""
    if _under_torchrun():
        return int(os.environ["WORLD_SIZE"]) > 1
    return _under_srun() and int(os.environ["SLURM_NTASKS"]) > 1


def _under_torchrun() -> bool:
    return distributed.is_available() and distributed.is_torchelastic_launched()


def _under_srun() -> bool:
    if "SLURM_NTASKS" not in os.environ:
        return False
    from lightning_fabric.plugins.environments.slurm import SLURMEnvironment

    with _no_advice_of_srun():
        return SLURMEnvironment.detect()


@contextmanager
def _no_advice_of_srun() -> Iterator[None]:
    """Hide Lightning's advice to use srun, which it gives on every machine with Slurm."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*`srun` command is available")
        yield


def _processes_started(nodes: int) -> int | None:
    """Number of processes on this machine that torchrun or Slurm has started; None if neither has.

    Raises SectionError if the number of processes does not fit `nodes` machines.
    """
    if _under_torchrun():
        here, everywhere = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
    elif _under_srun():
        everywhere = int(os.environ.get("SLURM_NTASKS", "1"))
        here = int(os.environ.get("SLURM_NTASKS_PER_NODE") or everywhere // int(os.environ.get("SLURM_NNODES", "1")))
    elif nodes > 1:
        raise SectionError(
            {"num_nodes": f"{nodes} machines need torchrun or Slurm, but neither has started this process"}
        )
    else:
        return None
    if here * nodes != everywhere:
        raise SectionError(
            {
                "num_nodes": f"{nodes} x {here} processes (machines x processes on each) were expected, but torchrun "
                f"or Slurm has started {everywhere}"
            }
        )
    return here


def _devices(gpus: int | list[int], started: int | None) -> tuple[str, int | list[int]]:
    if gpus == -1:
        return "cpu", started or 1
    if not torch.cuda.is_available():
        warnings.warn(f"infrastructure.gpus is {gpus}, but there is no CUDA device, so the CPU is used", stacklevel=3)
        return "cpu", started or 1
    named = [gpus] if isinstance(gpus, int) else gpus
    if started is None or started == len(named):
        return "cuda", named
    if isinstance(gpus, int):
        return "cuda", started
    raise SectionError({"gpus": f"{len(named)} devices are listed, but {started} processes were started per machine"})


def summing_ddp() -> DDPStrategy:
    """Strategy of DDP that adds up the gradients of the processes instead of averaging them.

    The loss of each process is then its share of the mean over the *global* batch. So every example has the same
    error as in training by one process, which rules that are not linear in the error (`gradient_clip`) need, and
    unequal shares (in the last batch) need no weights.
    """
    from lightning_fabric.strategies.ddp import DDPStrategy

    class SummingDDP(DDPStrategy):
        def setup_module(self, module: nn.Module) -> DistributedDataParallel:
            _leave_out_feedback(module)
            wrapped = super().setup_module(module)
            wrapped.register_comm_hook(None, lambda state, bucket: _sum(bucket.buffer()))
            return wrapped

    return SummingDDP()


def _leave_out_feedback(module: nn.Module) -> None:
    """Tell DDP not to send feedback weights: all processes compute the same ones, and sending costs time."""
    names = [name for name, _ in module.named_buffers() if is_feedback(name)]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, names)  # type: ignore[no-untyped-call]


def share_statistics(model: nn.Module, fabric: Fabric) -> None:
    """Copy the batch statistics of the first process to all others, as DDP does before a forward pass."""
    if fabric.world_size > 1:
        for name, buffer in model.named_buffers():
            if not is_feedback(name):
                broadcast(buffer, src=0)


def require_equal_feedback(model: nn.Module, fabric: Fabric) -> None:
    """Raise RuntimeError unless every process has the same feedback weights, to the bit."""
    mine = {name: value for name, value in model.state_dict().items() if is_feedback(name)}
    if len(set(gather(state_hash(mine), fabric))) > 1:
        raise RuntimeError(f"the feedback weights of the {fabric.world_size} processes are no longer equal")


def gather(mine: _T, fabric: Fabric) -> list[_T]:
    """Collect `mine` (plain values and tensors) of all processes; each of them gets the list, by rank."""
    if fabric.world_size == 1:
        return [mine]
    everyone: list[Any] = [None] * fabric.world_size
    all_gather_object(everyone, mine)
    return everyone


def any_process(fabric: Fabric, *flags: bool) -> list[bool]:
    """Whether each flag is true in any process. All processes get the same answer, and wait for each other."""
    if fabric.world_size == 1:
        return list(flags)
    total: Any = fabric.all_reduce(torch.tensor(flags, dtype=torch.float32, device=fabric.device), reduce_op="sum")
    return [bool(count) for count in total]


def _sum(gradients: torch.Tensor) -> Future[torch.Tensor]:
    work: Any = all_reduce(gradients, async_op=True)
    future: Future[torch.Tensor] = work.get_future().then(lambda done: done.value()[0])
    return future
