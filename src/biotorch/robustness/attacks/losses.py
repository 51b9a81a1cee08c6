"""Losses that attacks raise: of outputs (n, C) and labels (n,), with and without targets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from biotorch.robustness.attacks.inputs import require

LossName = Literal["ce", "margin", "dlr"]
Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(outputs: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy per example, -log softmax(z)_y: outputs z (n, C) and labels y (n,) to (n,)."""
    return F.cross_entropy(outputs, labels, reduction="none")


def margin(outputs: Tensor, labels: Tensor) -> Tensor:
    """Margin per example, max_{j≠y} z_j - z_y: outputs z (n, C) and labels y (n,) to (n,)."""
    true = F.one_hot(labels, outputs.shape[1]).bool()
    return outputs.masked_fill(true, -torch.inf).amax(1) - outputs.gather(1, labels[:, None])[:, 0]


def dlr(outputs: Tensor, labels: Tensor) -> Tensor:
    """Difference of logits ratio (DLR) per example: (n,). Raises ValueError for fewer than three classes."""
    if outputs.shape[1] < 3:
        raise ValueError(f"loss 'dlr' needs at least three classes, and there are {outputs.shape[1]}; use 'margin'")
    largest = outputs.topk(3, dim=1).values
    return margin(outputs, labels) / (largest[:, 0] - largest[:, 2]).clamp_min(1e-12)


LOSSES: dict[LossName, Loss] = {"ce": cross_entropy, "margin": margin, "dlr": dlr}


def towards(targets: Tensor) -> Loss:
    """Difference z_t - z_y of outputs z (n, C) with labels y (n,), for the targets t (n,): a loss, (n,)."""

    def loss(outputs: Tensor, labels: Tensor) -> Tensor:
        return (outputs.gather(1, targets[:, None]) - outputs.gather(1, labels[:, None]))[:, 0]

    return loss


def divergence(clean: Tensor) -> Loss:
    """KL(softmax(c) ‖ softmax(z)) of outputs z (n, C), for the clean outputs c (n, C): a loss, (n,), without labels."""

    def loss(outputs: Tensor, _: Tensor) -> Tensor:
        pointwise = F.kl_div(F.log_softmax(outputs, 1), F.log_softmax(clean, 1), log_target=True, reduction="none")
        return pointwise.sum(1)

    return loss


def targeted_dlr(outputs: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Targeted DLR (Croce and Hein 2020, section 4): (z_t - z_y) / (z_π1 - (z_π3 + z_π4) / 2), per example: (n,).

    z_π1 ≥ z_π2 ≥ ... are the sorted outputs. Raises ValueError for fewer than four classes.
    """
    classes = outputs.shape[1]
    require(classes >= 4, f"loss 'dlr' with targets needs at least four classes, and there are {classes}; use 'margin'")
    first, _, third, fourth = outputs.topk(4, dim=1).values.unbind(1)
    return towards(targets)(outputs, labels) / (first - (third + fourth) / 2).clamp_min(1e-12)


#: Losses that rise towards the target: of outputs (n, C), labels (n,) and targets (n,).
TARGETED: dict[LossName, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "ce": lambda outputs, _, targets: -cross_entropy(outputs, targets),
    "margin": lambda outputs, _, targets: -margin(outputs, targets),
    "dlr": targeted_dlr,
}
