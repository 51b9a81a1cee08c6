"""What an attack makes large: one loss per example, from outputs (n, C) and labels (n,) to (n,).

=========  ============================================================================================
`ce`       cross-entropy; vanishes where the network is very sure of itself
`margin`   max_{j≠y} z_j - z_y (Carlini and Wagner 2017); positive exactly where the image is misclassified
`dlr`      -(z_y - max_{j≠y} z_j) / (z_π1 - z_π3) (Croce and Hein 2020, equation 6); does not change
           when outputs are shifted or scaled; needs three classes
=========  ============================================================================================
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

LossName = Literal["ce", "margin", "dlr"]
Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(outputs: Tensor, labels: Tensor) -> Tensor:
    """-log softmax(z)_y."""
    return F.cross_entropy(outputs, labels, reduction="none")


def margin(outputs: Tensor, labels: Tensor) -> Tensor:
    """max_{j≠y} z_j - z_y."""
    true = F.one_hot(labels, outputs.shape[1]).bool()
    return outputs.masked_fill(true, -torch.inf).amax(1) - outputs.gather(1, labels[:, None])[:, 0]


def dlr(outputs: Tensor, labels: Tensor) -> Tensor:
    """The difference of logits ratio. Raises ValueError for fewer than three classes."""
    if outputs.shape[1] < 3:
        raise ValueError(f"loss 'dlr' needs at least three classes, and there are {outputs.shape[1]}: take 'margin'")
    largest = outputs.topk(3, dim=1).values
    return margin(outputs, labels) / (largest[:, 0] - largest[:, 2]).clamp_min(1e-12)


LOSSES: dict[LossName, Loss] = {"ce": cross_entropy, "margin": margin, "dlr": dlr}
