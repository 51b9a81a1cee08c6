"""Loss, errors and residuals on a split."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from biotorch.data import DataError, Split
from biotorch.errors import ConfigError
from biotorch.models.outputs import main_output
from biotorch.training.distributed import one_process
from biotorch.training.losses import label_count

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def loss_size(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor], float]:
    """Function from the labels of a batch to the divisor in the mean of `loss` over this batch.

    It is the method `size` of `loss`, if there is one, else `label_count`.
    """
    return getattr(loss, "size", label_count)


def require_outputs(top_k: int, count: int) -> None:
    """Raise ConfigError if `top_k` exceeds the number of a network's outputs, among which every label would be."""
    if top_k > count:
        raise ConfigError(f"training.metrics.top_k: {top_k} of {count} outputs cannot be chosen: give at most {count}")


class Tally(ABC):
    """Running sums over labels, from which the figures of a split are computed."""

    #: Sums in float64, which may be added over processes.
    sums: Tensor

    @staticmethod
    def of(split: Split, top_k: int, scale: Sequence[float], device: torch.device) -> Tally:
        """Create the empty sums for a split.

        Args:
            split: the split, whose labels are classes or numbers.
            top_k: for classes: if greater than 1, also count the labels that are not among the k highest outputs.
            scale: for numbers: standard deviation of each target in original units; 1 if empty.
            device: device of the batches.
        """
        if split.labels.is_floating_point():
            return _Residuals(scale or (1.0,) * split.labels.shape[1], device)
        return _Errors(top_k, split.per_token, device)

    @abstractmethod
    def add(self, loss: Tensor, size: float, outputs: Tensor, labels: Tensor) -> None:
        """Add a batch.

        Args:
            loss: mean loss.
            size: divisor of this mean.
            outputs: (n, C), or (n, T, C).
            labels: (n,) or (n, T) int64, or (n, C) float.
        """

    @abstractmethod
    def figures(self, sums: Sequence[float]) -> dict[str, float]:
        """Figures for the values of `sums`; empty without any label."""

    def here(self) -> dict[str, float]:
        """Figures of `result` for the batches of this process only; empty before the first batch."""
        return self.figures(self.sums.tolist())

    def result(self, fabric: Fabric) -> dict[str, float]:
        """Figures over all processes, see `evaluate`.

        Raises:
            DataError: no example could be read.
        """
        figures = self.figures(fabric.all_reduce(self.sums.clone(), reduce_op="sum").tolist())  # type: ignore[union-attr]
        if not figures:
            raise DataError("no example of this split can be read")
        return figures


class _Errors(Tally):
    """Sums of a classification: losses, their divisor, wrong first guesses, labels not among the top k, negative
    log-likelihood (nats) of the labels (0 unless `per_token`), number of labels."""

    def __init__(self, top_k: int, per_token: bool, device: torch.device) -> None:
        self.top_k, self.per_token = top_k, per_token
        self.sums = torch.zeros(6, dtype=torch.float64, device=device)

    def add(self, loss: Tensor, size: float, outputs: Tensor, labels: Tensor) -> None:
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

    def figures(self, sums: Sequence[float]) -> dict[str, float]:
        loss, size, wrong, missed, surprise, count = sums
        if not count:
            return {}
        figures = {"loss": loss / size if size else math.nan, "error": 100 * wrong / count}
        if self.top_k > 1:
            figures[f"top_{self.top_k}_error"] = 100 * missed / count
        if self.per_token:
            figures["perplexity"] = torch.tensor(surprise / count, dtype=torch.float64).exp().item()
        return figures


#: Variance of a target, as a share of its mean square, below which it is a rounding error of float64 sums.
_CONSTANT = 1e-12


class _Residuals(Tally):
    """Sums of a regression: losses, their divisor, number of examples, and of each target the squared residuals, the
    values and their squares."""

    def __init__(self, scale: Sequence[float], device: torch.device) -> None:
        self.scale = scale
        self.sums = torch.zeros(3 + 3 * len(scale), dtype=torch.float64, device=device)

    def add(self, loss: Tensor, size: float, outputs: Tensor, labels: Tensor) -> None:
        y = labels.double()
        each = torch.cat([((outputs.detach() - y) ** 2).sum(0), y.sum(0), (y**2).sum(0)])
        sizes = torch.tensor([size, len(labels)], dtype=torch.float64, device=each.device)
        self.sums += torch.cat([(loss.detach().double() * size)[None], sizes, each])

    def figures(self, sums: Sequence[float]) -> dict[str, float]:
        loss, size, n, *each = sums
        if not n:
            return {}
        k = len(self.scale)
        residual, total, squares = (each[at : at + k] for at in (0, k, 2 * k))
        spread = [square - sum_ * sum_ / n for sum_, square in zip(total, squares, strict=True)]
        varies = all(left > _CONSTANT * square for left, square in zip(spread, squares, strict=True))
        shares = [part / whole for part, whole in zip(residual, spread, strict=True)] if varies else [math.nan]
        return {
            "loss": loss / size if size else math.nan,
            "rmse": math.sqrt(sum(part * std**2 for part, std in zip(residual, self.scale, strict=True)) / (n * k)),
            "r2": 1 - sum(shares) / len(shares),
        }


@torch.no_grad()
def evaluate(
    model: nn.Module,
    split: Split,
    loss: Callable[[Tensor, Tensor], Tensor],
    top_k: int = 1,
    batch_size: int = 500,
    fabric: Fabric | None = None,
    on_batch: Callable[[], None] = lambda: None,
    scale: Sequence[float] = (),
) -> dict[str, float]:
    """Measure a network in eval mode; the mode is restored.

    For classes: mean `loss`, top-1 `error` (%), and if `top_k` > 1 the `top_<k>_error` (%). If the split has a label
    for each token, all figures are per token, and `perplexity` is added: the exponential of the mean negative
    log-likelihood (nats) of the labels under the softmax of the outputs, whatever the loss is.

    For the numbers of a regression: mean `loss`; `rmse`, the root of the squared residuals' mean over examples and
    targets, in original units; and `r2`, the coefficient of determination 1 - SS_res / SS_tot over the whole split,
    averaged over the targets, or NaN if a target is constant on the split.

    Args:
        model: a plain module, on the device of `split`.
        split: examples to measure on; each process of `fabric` takes its share.
        loss: function called as `loss(outputs, labels)` with outputs (n, C) and labels (n,), or (n, T, C) and (n, T),
            which returns the mean over a batch; in a regression labels are (n, C), too.
        top_k: if greater than 1, measure the top-k error, too.
        batch_size: examples per batch.
        fabric: the launched processes; default: one process on the CPU.
        on_batch: called after each batch that has a counterpart in every process; it may raise, to stop.
        scale: standard deviation of each target, `Dataset.target_std`, which the RMSE is multiplied by; default: 1.

    Raises:
        ConfigError: `top_k` exceeds the number of outputs.
        DataError: no example can be read.
        TypeError: `main_output` does not know the kind of outputs that the network returns.

    Examples:
        >>> digits = biotorch.data.load(biotorch.data.DataConfig(dataset="digits"), seed=0)
        >>> model = biotorch.models.fa.mlp(in_features=64, width=16)
        >>> found = biotorch.training.evaluate(model, digits.test, nn.functional.cross_entropy, top_k=3)
        >>> sorted(found)
        ['error', 'loss', 'top_3_error']
    """
    fabric = fabric or one_process()
    whole = torch.split(torch.arange(len(split)), batch_size)
    parts, common = whole[fabric.global_rank :: fabric.world_size], len(whole) // fabric.world_size
    tally, size = Tally.of(split, top_k, scale, fabric.device), loss_size(loss)
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
