"""Comparison of a network's gradient with finite differences of its loss."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from biotorch.robustness.attacks.attempt import Attempt, Loss, cross_entropy
from biotorch.robustness.attacks.norms import Norm, steepest

#: Lengths of the finite differences, as shares of epsilon. A gradient agrees if it does at one of them: short ones
#: suffer from rounding, long ones from curvature. A straight-through gradient of rounded images agrees at long ones.
_LENGTHS = (1 / 32, 1 / 256, 1 / 4)


def disagreements(attempt: Attempt, points: Tensor, epsilon: float, norm: Norm) -> tuple[int, int]:
    """Number of images at which the gradient at `points` disagrees with finite differences, and number of comparisons.

    A gradient agrees if it predicts how a loss changes to within a factor of two. The cross-entropy and the difference
    between the outputs of the strongest wrong class and of the label are followed along their gradients, and the latter
    along random signs, too. Images at which the changes are too small to be told from rounding, or which are
    misclassified without an attack, are left out.

    Args:
        attempt: the images, and the network.
        points: (n, ...), one point for each image.
        epsilon, norm: ball of the attacks; the finite differences are up to a quarter of epsilon long.
    """
    labels = attempt.labels
    with torch.no_grad():
        outputs = attempt.forward(points)
    rival = outputs.masked_fill(F.one_hot(labels, outputs.shape[1]).bool(), -torch.inf).argmax(1)

    def pairwise(outputs: Tensor, labels: Tensor) -> Tensor:
        return (outputs.gather(1, rival[:, None]) - outputs.gather(1, labels[:, None]))[:, 0]

    disagree, compared = torch.zeros(2, len(points), dtype=torch.bool, device=points.device)
    for loss, random in ((pairwise, False), (cross_entropy, False), (pairwise, True)):
        agrees, told = _agrees(attempt, points, loss, random, epsilon, norm)
        disagree |= told & ~agrees
        compared |= told
    return int(disagree[attempt.clean].sum()), int(compared[attempt.clean].sum())


def _agrees(
    attempt: Attempt, points: Tensor, loss: Loss, random: bool, epsilon: float, norm: Norm
) -> tuple[Tensor, Tensor]:
    """Whether the gradient predicts how the loss changes, and whether that can be told from rounding: (n,) each.

    The loss is followed along the gradient, or along random signs.
    """
    _same_noise()
    gradient, _, outputs = attempt.gradient(points, torch.arange(len(points), device=points.device), loss, "true")
    signs = torch.randint(0, 2, points.shape, generator=attempt.generator).to(points) * 2 - 1
    direction = steepest(signs if random else gradient, norm)
    rounding = 32 * torch.finfo(outputs.dtype).eps * outputs.double().abs().amax(1)
    usable = (gradient.flatten(1) != 0).any(1)
    agrees, told = torch.zeros(2, len(points), dtype=torch.bool, device=points.device)
    for share in _LENGTHS:
        ends = [(points + sign * share * epsilon * direction).clamp(0, 1) for sign in (1, -1)]
        up, down = (_loss(attempt, each, loss) for each in ends)
        expected = (gradient.double() * (ends[0] - ends[1]).double()).flatten(1).sum(1)
        larger = torch.maximum((up - down).abs(), expected.abs())
        clear = usable & (larger > 4 * rounding)
        agrees |= clear & ((up - down - expected).abs() <= larger / 2 + rounding)
        told |= clear
        if bool((agrees | ~usable).all()):
            break
    return agrees, told


def _loss(attempt: Attempt, points: Tensor, loss: Loss) -> Tensor:
    _same_noise()
    with torch.no_grad():
        return loss(attempt.forward(points).double(), attempt.labels)


def _same_noise() -> None:
    """Seed torch's generators, so that a noisy network draws the same noise in passes that are compared."""
    torch.manual_seed(0)
