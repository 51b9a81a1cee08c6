"""Loss and errors on a split."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from biotorch.data import DataError, Split


def loss_size(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor], float]:
    """What the mean of `loss` over a batch divides by, given its labels (n,); for any function, their number."""
    return getattr(loss, "size", len)


class Tally:
    """Sums over examples, from which come the mean loss and the errors (%)."""

    def __init__(self, top_k: int, device: torch.device) -> None:
        self.top_k = top_k
        #: Sum of losses, what it divides by, wrong first guesses, labels not among the top k, examples.
        self.sums = torch.zeros(5, dtype=torch.float64, device=device)

    def add(self, loss: Tensor, size: float, outputs: Tensor, labels: Tensor) -> None:
        """A batch of outputs (n, C) and labels (n,), its mean loss and what that mean divides by."""
        outputs, count = outputs.detach(), len(labels)
        wrong = (outputs.argmax(1) != labels).sum()
        missed = wrong
        if self.top_k > 1:
            ranked = outputs.topk(min(self.top_k, outputs.shape[1]), 1).indices
            missed = (ranked != labels[:, None]).all(1).sum()
        sizes = torch.tensor([size, count], dtype=torch.float64, device=wrong.device)
        self.sums += torch.stack([loss.detach().double() * size, sizes[0], wrong, missed, sizes[1]])

    def result(self, fabric: Fabric) -> dict[str, float]:
        """Over all processes: `loss`, `error` and, if k > 1, `top_<k>_error`."""
        loss, size, wrong, missed, count = fabric.all_reduce(self.sums.clone(), reduce_op="sum").tolist()  # type: ignore[union-attr]
        if not count:
            raise DataError("there is no readable example in this split")
        result = {"loss": loss / size if size else math.nan, "error": 100 * wrong / count}
        return result | ({f"top_{self.top_k}_error": 100 * missed / count} if self.top_k > 1 else {})


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
    """Mean loss, top-1 error (%), and top-k error (%) if `top_k` > 1, in eval mode; the mode is restored.

    Args:
        model: a plain module, on the device of `split`.
        split: what to measure on; each process of `fabric` takes its share.
        loss: `loss(outputs (n, C), labels (n,))`, the mean over a batch.
        on_batch: called after each batch that every process has; may raise, to stop.

    Raises:
        DataError: no example can be read.
    """
    fabric = fabric or Fabric(accelerator="cpu", devices=1)
    whole = torch.split(torch.arange(len(split)), batch_size)
    parts, common = whole[fabric.global_rank :: fabric.world_size], len(whole) // fabric.world_size
    tally, size = Tally(top_k, fabric.device), loss_size(loss)
    training = model.training
    model.eval()
    try:
        for number, (images, labels) in enumerate(split.batches(parts)):
            if len(labels):  # else none of them could be read
                with fabric.autocast():
                    outputs = model(images).float()
                tally.add(loss(outputs, labels), size(labels), outputs, labels)
            if number < common:
                on_batch()
    finally:
        model.train(training)
    return tally.result(fabric)
