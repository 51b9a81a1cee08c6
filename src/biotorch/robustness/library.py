"""What the attacks of pyautoattack have in common: they see float32, and leave nothing behind."""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor

from biotorch.robustness.attempt import Attempt, Gradient, route
from biotorch.robustness.norms import Norm

#: Names of the norms there.
NORMS: dict[Norm, str] = {"linf": "Linf", "l2": "L2"}

#: Where its warnings go.
LOGGER = logging.getLogger("biotorch.robustness.pyautoattack")
LOGGER.propagate = False


class Network:
    """The attempt's network as a function of float32 images, which counts the rows that it is asked for."""

    def __init__(self, attempt: Attempt) -> None:
        self.attempt, self.rows = attempt, 0

    def __call__(self, points: Tensor) -> Tensor:
        """Outputs (m, C) in float32, a tensor of its own: the library writes into it."""
        self.rows += len(points)
        return self.attempt.forward(points.to(self.attempt.images.dtype)).float().clone()


@contextlib.contextmanager
def running(attempt: Attempt, kind: Gradient) -> Iterator[Network]:
    """The network to hand to the library, along one of its gradients.

    The library seeds the global generator, which `Attack` keeps for its user, and switches tracing off, which
    debuggers and coverage need: it is put back. Its log becomes warnings.

    Warns:
        UserWarning: what the library has to say about the network.
    """
    torch.manual_seed(int(torch.randint(2**31, (), generator=attempt.generator)))
    trace, told = sys.gettrace(), _Told()
    LOGGER.addHandler(told)
    try:
        with route(attempt.model, kind):
            yield Network(attempt)
    finally:
        LOGGER.removeHandler(told)
        sys.settrace(trace)
    for message in told.messages:
        warnings.warn(f"pyautoattack: {message}", stacklevel=2)


class _Told(logging.Handler):
    """Keeps each warning once."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if message not in self.messages:
            self.messages.append(message)


def share(attempt: Attempt, index: Tensor, network: Network) -> None:
    """Count the rows, shared evenly by the images: the library does not say which it asked for."""
    attempt.queries[index.cpu()] += -(-network.rows // len(index))
