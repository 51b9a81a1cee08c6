"""Training steps of one network under one rule, ready to be timed."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.networks import Network, loss
from biotorch import convert, targets


@dataclasses.dataclass(frozen=True)
class Way:
    """Way of training: batch size, precision (`32`, or `bf16` for autocast), and whether through torch.compile."""

    batch: int = 128
    precision: str = "32"
    compiled: bool = False


class Stepper:
    """A network with its optimizer and one batch: `step()` trains, `turn()` times.

    The optimizer is SGD with momentum and weight decay.

    Args:
        network: what to build.
        rule: rule to convert it to; None is plain PyTorch.
        way: batch size, precision, and whether to compile.
        fused: whether to use torch's fused SGD.
        prepare: changes the network before its optimizer is made, and returns what to do after each update.
        around: context of each step.
    """

    def __init__(
        self,
        network: Network,
        rule: str | None,
        way: Way,
        fused: bool = False,
        prepare: Callable[[nn.Module], Callable[[], None]] = lambda model: lambda: None,
        around: contextlib.AbstractContextManager[object] | None = None,
    ) -> None:
        self.model = network.build()
        if rule is not None:
            convert(self.model, rule)
        self.after = prepare(self.model)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = sgd(trained, fused)
        compiled = functools.partial(torch.compile, isolate_recompiles=True)  # missing in the stub of the overload
        self.forward: Callable[..., Tensor] = compiled(self.model) if way.compiled else self.model
        self.autocast = torch.autocast("cpu", torch.bfloat16, enabled=way.precision == "bf16")
        self.around = around or contextlib.nullcontext()
        self.inputs, self.labels = network.batch(way.batch)

    def step(self) -> float:
        """Train on the batch, and return the seconds that it took."""
        with self.around:
            start = time.perf_counter()
            self.optimizer.zero_grad()
            with targets(self.labels), self.autocast:
                value = loss(self.forward(self.inputs), self.labels)
            value.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            self.after()
            return time.perf_counter() - start

    def turn(self) -> float:
        """Seconds of a step: the mean of two, after one that is not timed.

        That one refills the caches and memory pools that another network's step has used, which in training the step
        before has done.
        """
        self.step()
        return statistics.fmean(self.step() for _ in range(2))


def sgd(parameters: list[nn.Parameter], fused: bool = False) -> torch.optim.Optimizer:
    """The optimizer of all steps, with a rate so small that no network diverges."""
    return torch.optim.SGD(parameters, lr=1e-4, momentum=0.9, weight_decay=1e-4, fused=fused)
