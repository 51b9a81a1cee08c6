"""Smoothness of a network: whether its outputs change as its gradient says, and without jumps."""

from __future__ import annotations

import random

import numpy
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from biotorch.robustness.attacks.attempt import Attempt
from biotorch.robustness.attacks.inputs import floating_type
from biotorch.robustness.attacks.losses import Loss, cross_entropy, margin, towards
from biotorch.robustness.attacks.norms import Norm, steepest

#: Lengths of the finite differences, as shares of epsilon. A gradient agrees if it does at one of them: short ones
#: suffer from rounding, long ones from curvature. A straight-through gradient of rounded images agrees at long ones.
_LENGTHS = (1 / 32, 1 / 256, 1 / 2048, 1 / 4, 1)
#: Cross-entropy below which its gradient is lost to rounding, because the probability of the label is rounded to 1.
_SATURATED = 1e-3
#: Halvings of the way between two images: the class switches within a thousandth of it.
_HALVINGS = 10
#: Share of the whole change of the margin above which its change within that thousandth is a jump.
_JUMP = 0.5


def precision(outputs: Tensor, model: nn.Module) -> float:
    """Relative rounding error of outputs (n, C): that of half precision if the network computes in it.

    Under autocast its parameters do not show that, but its outputs do, which half precision holds exactly.
    """
    types = [floating_type(model) or outputs.dtype, outputs.dtype]
    types += [each for each in (torch.float16, torch.bfloat16) if torch.equal(outputs.to(each).to(outputs), outputs)]
    return max(torch.finfo(each).eps for each in types)


def disagreements(attempt: Attempt, points: Tensor, epsilon: float, norm: Norm) -> tuple[int, int]:
    """Number of images at which the gradient at `points` disagrees with finite differences, and number of comparisons.

    A gradient agrees if it predicts how a loss changes to within a factor of two. The cross-entropy and the difference
    between the outputs of the strongest wrong class and of the label are followed along their gradients, and the latter
    along random signs, too. Images at which the changes are too small to be told from rounding, or which are
    misclassified without an attack, are left out.

    Args:
        attempt: the images, and the network.
        points: (n, ...), one point for each image.
        epsilon, norm: ball of the attacks; the finite differences are up to epsilon long in each direction.
    """
    with torch.no_grad():
        outputs = attempt.forward(points, attempt.everyone)
    labels = attempt.labels
    rival = outputs.masked_fill(F.one_hot(labels, outputs.shape[1]).bool(), -torch.inf).argmax(1)
    pairwise = towards(rival)
    disagree, compared = torch.zeros(2, len(points), dtype=torch.bool, device=points.device)
    for loss, signs in ((pairwise, False), (cross_entropy, False), (pairwise, True)):
        agrees, told = _agrees(attempt, points, loss, signs, epsilon, norm)
        disagree |= told & ~agrees
        compared |= told
    return int(disagree[attempt.clean].sum()), int(compared[attempt.clean].sum())


def partners(answers: list[int]) -> list[int]:
    """For each of n images, the index of the next one with another answer, cyclically; -1 if all answers are equal."""
    n = len(answers)
    found = [-1] * n
    following = -1
    for position in reversed(range(2 * n)):
        this, after = position % n, (position + 1) % n
        if answers[after] != answers[this]:
            following = after
        found[this] = following
    return found


def jumps(attempt: Attempt, others: Tensor) -> tuple[int, int]:
    """Number of images on whose way to an image of another class the margin jumps, and number of images compared.

    Where the class switches on the straight way is found by bisection. A network that computes its answer from one
    function and shows the outputs of another jumps there, wherever else its outputs are smooth.

    Args:
        attempt: n images, and the network.
        others: (n, ...), for each image one that the network classifies otherwise.
    """
    outputs = attempt.clean_outputs
    index = (attempt.clean & ~outputs.isnan().any(1)).nonzero()[:, 0]
    if not len(index):
        return 0, 0
    near, far, labels = attempt.images[index], others[index], outputs.argmax(1)[index]
    shape = (-1, *[1] * (near.dim() - 1))

    def inside(points: Tensor) -> Tensor:
        _same_noise()
        with torch.no_grad():
            return -margin(attempt.forward(points, index).double(), labels)

    first, last = inside(near), inside(far)
    low, high = first, last
    for _ in range(_HALVINGS):
        middle = (near + far) / 2
        value = inside(middle)
        stays = value > 0
        near, far = torch.where(stays.view(shape), middle, near), torch.where(stays.view(shape), far, middle)
        low, high = torch.where(stays, value, low), torch.where(stays, high, value)
    usable = (first > 0) & (last <= 0)
    return int((usable & (low - high > _JUMP * (first - last))).sum()), int(usable.sum())


def _agrees(
    attempt: Attempt, points: Tensor, loss: Loss, along_signs: bool, epsilon: float, norm: Norm
) -> tuple[Tensor, Tensor]:
    """Whether the gradient predicts how the loss changes, and whether that can be told from rounding: (n,) each.

    The loss is followed along the gradient, or along random signs.
    """
    if along_signs:  # off the points at which equal pixels tie in a maximum, where one slope holds on each side
        noise = torch.rand(points.shape, generator=attempt.generator).to(points) - 0.5
        points = (points + epsilon / 8 * steepest(noise, norm) * noise.abs()).clamp(0, 1)
    _same_noise()
    gradient, losses, outputs = attempt.gradient(points, attempt.everyone, loss, "true")
    signs = torch.randint(0, 2, points.shape, generator=attempt.generator).to(points) * 2 - 1
    direction = steepest(signs if along_signs else gradient, norm)
    rounding = 8 * precision(outputs, attempt.model) * outputs.double().abs().amax(1)
    usable = (gradient.flatten(1) != 0).any(1)
    if loss is cross_entropy:
        usable &= losses > _SATURATED
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
        outputs = attempt.forward(points, attempt.everyone)
        return loss(outputs.double(), attempt.labels)


def _same_noise() -> None:
    """Seed the global generators, so that a noisy network draws the same noise in passes that are compared."""
    torch.manual_seed(0)
    random.seed(0)
    numpy.random.seed(0)
