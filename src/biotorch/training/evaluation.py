"""Loss and errors on a split."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from biotorch.data import DataError, Split
from biotorch.errors import ConfigError
from biotorch.models.outputs import main_output
from biotorch.training.distributed import one_process

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def loss_size(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor], float]:
    """Function from the labels (n,) or (n, T) of a batch to the divisor in the mean of `loss` over this batch.

    It is the method `size` of `loss`, if there is one, else the number of labels.
    """
    return getattr(loss, "size", torch.numel)


def require_outputs(top_k: int, count: int) -> None:
    """Raise ConfigError if `top_k` exceeds the number of a network's outputs, among which every label would be."""
    if top_k > count:
        raise ConfigError(f"training.metrics.top_k: {top_k} of {count} outputs cannot be chosen: give at most {count}")


class Tally:
    """Running sums over labels, from which the mean loss and the errors (%) are computed.

    Args:
        top_k: if greater than 1, also count the labels that are not among the k highest outputs.
        per_token: whether each example has a label at each of its positions; the perplexity is computed, too.
        device: device of the batches.
    """

    def __init__(self, top_k: int, per_token: bool, device: torch.device) -> None:
        self.top_k, self.per_token = top_k, per_token
        #: Sum of losses, its divisor, number of wrong first guesses, number of labels not among the top k, negative
        #: log-likelihood (nats) of the labels (0 unless `per_token`), number of labels.
        self.sums = torch.zeros(6, dtype=torch.float64, device=device)

    def add(self, loss: Tensor, size: float, outputs: Tensor, labels: Tensor) -> None:
        """Add a batch: its mean loss, the divisor of this mean, outputs (n, C) or (n, T, C), labels (n,) or (n, T)."""
        outputs, labels = outputs.detach().flatten(0, -2), labels.flatten()
        wrong = (outputs.argmax(1) != labels).sum()
        missed = wrong
        if self.top_k > 1:
            require_outputs(self.top_k, outputs.shape[1])
            ranked = outputs.topk(self.top_k, 1).indices
            missed = (ranked != labels[:, None]).all(1).sum()
        surprise = wrong.new_zeros(())
        if self.per_token:
            surprise = F.cross_entropy(outputs.float(), labels, reduction="sum")
        sizes = torch.tensor([size, len(labels)], dtype=torch.float64, device=wrong.device)
        self.sums += torch.stack([loss.detach().double() * size, sizes[0], wrong, missed, surprise, sizes[1]])

    def here(self) -> dict[str, float]:
        """Figures of `result` for the batches of this process only; empty before the first batch."""
        return self._figures(self.sums.tolist())

    def result(self, fabric: Fabric) -> dict[str, float]:
        """Figures over all processes: `loss`, `error`, for k > 1 `top_<k>_error`, and with `per_token` `perplexity`.

        The perplexity is the exponential of the mean negative log-likelihood (nats) of the labels under the softmax of
        the outputs, whatever the loss is.

        Raises:
            DataError: no example could be read.
        """
        figures = self._figures(fabric.all_reduce(self.sums.clone(), reduce_op="sum").tolist())  # type: ignore[union-attr]
        if not figures:
            raise DataError("no example of this split can be read")
        return figures

    def _figures(self, sums: Sequence[float]) -> dict[str, float]:
        loss, size, wrong, missed, surprise, count = sums
        if not count:
            return {}
        figures = {"loss": loss / size if size else math.nan, "error": 100 * wrong / count}
        if self.top_k > 1:
            figures[f"top_{self.top_k}_error"] = 100 * missed / count
        if self.per_token:
            figures["perplexity"] = torch.tensor(surprise / count, dtype=torch.float64).exp().item()
        return figures


@torch.no_grad()
def evaluate(
    model: nn.Module,
    split: Split,
    loss: Callable[[Tensor, Tensor], Tensor],
    top_k: int = 1,
    batch_size: int = 500,
    fabric: Fabric | None = None,
    on_batch: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Measure mean loss, top-1 error (%) and, if `top_k` > 1, top-k error (%) in eval mode; the mode is restored.

    If the split has a label for each token, all figures are per token, and the `perplexity` is added.

    Args:
        model: a plain module, on the device of `split`.
        split: examples to measure on; each process of `fabric` takes its share.
        loss: function called as `loss(outputs, labels)` with outputs (n, C) and labels (n,), or (n, T, C) and (n, T),
            which returns the mean over a batch.
        top_k: if greater than 1, measure the top-k error, too.
        batch_size: examples per batch.
        fabric: the launched processes; default: one process on the CPU.
        on_batch: called after each batch that has a counterpart in every process; it may raise, to stop.

    Raises:
        ConfigError: `top_k` exceeds the number of outputs.
        DataError: no example can be read.
        TypeError: `main_output` does not know the kind of outputs that the network returns.
    """
    fabric = fabric or one_process()
    whole = torch.split(torch.arange(len(split)), batch_size)
    parts, common = whole[fabric.global_rank :: fabric.world_size], len(whole) // fabric.world_size
    tally, size = Tally(top_k, split.per_token, fabric.device), loss_size(loss)
    training = model.training
    model.eval()
    try:
        for number, (inputs, labels) in enumerate(split.batches(parts)):
            if len(labels):  # 0 if no image of the batch could be read
                with fabric.autocast():
                    outputs = main_output(model(inputs)).float()
                tally.add(loss(outputs, labels), size(labels), outputs, labels)
            if number < common:
                on_batch()
    finally:
        model.train(training)
    return tally.result(fabric)
