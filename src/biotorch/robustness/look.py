"""Look at a network before it is attacked: what its answers depend on, and whether its gradient is one."""

from __future__ import annotations

import copy
import dataclasses
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from biotorch import _seeding
from biotorch.robustness.attacks.attempt import Attempt, cross_entropy, margin
from biotorch.robustness.attacks.base import unseen
from biotorch.robustness.attacks.blind import RandomSigns
from biotorch.robustness.attacks.gradient import PGD
from biotorch.robustness.attacks.norms import Norm
from biotorch.robustness.smoothness import disagreements, jumps, precision

#: What a network's outputs are, by their values.
Outputs = Literal["logits", "log-probabilities", "probabilities", "values from 0 to 1"]

#: What changes between two passes of the same images, whose outputs should be equal.
Change = Literal["repeated", "shuffled", "alone", "recorded", "attacked", "unseen"]

#: Where a gradient is compared with finite differences: at the images, or at the end of a short attack.
Place = Literal["clean", "attacked"]

#: Steps of the short attack that leads to the attacked points.
_STEPS = 10
#: Number of images that are passed alone.
_FEW = 16


@dataclasses.dataclass(frozen=True)
class Difference:
    """Difference between two passes of the same images.

    Attributes:
        largest: largest difference of an output.
        excess: largest quotient of a difference and the rounding that it may have; above 1 the outputs differ.
    """

    largest: float
    excess: float

    @classmethod
    def between(cls, one: Tensor, other: Tensor, model: nn.Module) -> Difference:
        """Difference of outputs (n, C). Rounding may be 1/10,000 of a row's values, and more in half precision."""
        share = max(1e-4, 16 * precision(one, model))
        one, other = one.double(), other.double()
        same = (one == other) | (one.isnan() & other.isnan())
        size = one.abs().nan_to_num(0, 0, 0)
        apart = (one - other).abs().masked_fill(same, 0).nan_to_num(torch.inf)
        rounding = share * (1 + size + size.median(1, keepdim=True).values)
        return cls(float(apart.max()), float((apart / rounding).max()))

    def __or__(self, other: Difference) -> Difference:
        return Difference(max(self.largest, other.largest), max(self.excess, other.excess))


@dataclasses.dataclass(frozen=True)
class Look:
    """Observations of a network at n images.

    Attributes:
        clean: (n,) bool, whether each image is classified as labelled without an attack.
        guessing: accuracy (%) of always predicting the most frequent label.
        cosine: mean cosine between the true and the feedback gradient, over the correctly classified images.
        outputs: what the outputs are, by their values.
        not_numbers: number of images for which an output is NaN.
        differences: differences between passes of the same images, by what changes between them.
        slopes: by place, the number of images where the gradient disagrees with finite differences, and the number of
            those where the two could be compared.
        jumps: number of images on whose way to an image of another class the margin jumps, and number of comparisons.
        rises: number of images where a short attack reaches a higher margin than random signs, and where a lower one.
        snaps: share of the images that, slightly changed, get exactly the same outputs.
        differentiates: whether the network runs a backward pass in its forward pass.
        seconds: duration of a forward and of a backward pass, per image.
    """

    clean: Tensor
    guessing: float
    cosine: float
    outputs: Outputs
    not_numbers: int
    differences: Mapping[Change, Difference]
    slopes: Mapping[Place, tuple[int, int]]
    jumps: tuple[int, int]
    rises: tuple[int, int]
    snaps: float
    differentiates: bool
    seconds: tuple[float, float]

    @property
    def noisy(self) -> bool:
        """Whether two passes of the same images differ."""
        return self.differs("repeated")

    def differs(self, change: Change) -> bool:
        """Whether a change makes the outputs differ by more than rounding, and clearly more than repetition does."""
        found, repeated = self.differences[change], self.differences["repeated"]
        return found.excess > (1 if change == "repeated" else max(1, 3 * repeated.excess))


def look(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    epsilon: float,
    norm: Norm,
    *,
    two_gradients: bool,
    abstain: int | None,
    seed: int,
    batch_size: int,
) -> Look:
    """Observe a network at images (n, ...) in [0, 1] with labels (n,), and at points up to epsilon away from them."""
    fresh = _copy(model)
    parts = [
        _Batch(
            model, fresh, images[each], labels[each], epsilon, norm, two_gradients, abstain, seed, first=each.start == 0
        )
        for each in (slice(start, start + batch_size) for start in range(0, len(images), batch_size))
    ]
    clean = torch.cat([part.clean for part in parts])
    cosines = torch.cat([part.cosines for part in parts])[clean]
    counts = labels.bincount().double()
    differences: dict[Change, Difference] = {}
    for change, found in (item for part in parts for item in part.differences.items()):
        differences[change] = differences.get(change, found) | found
    return Look(
        clean,
        100 * float(counts.max() / counts.sum()),
        float(cosines.mean()) if len(cosines) else math.nan,
        _kind(torch.cat([part.outputs for part in parts])),
        sum(int(part.outputs.isnan().any(1).sum()) for part in parts),
        differences,
        {place: _added(part.slopes[place] for part in parts) for place in parts[0].slopes},
        _added(part.jumps for part in parts),
        _added(part.rises for part in parts),
        sum(part.same for part in parts) / len(images),
        parts[0].differentiates,
        parts[0].seconds,
    )


def _added(pairs: Iterator[tuple[int, int]]) -> tuple[int, int]:
    first, second = zip(*pairs, strict=True)
    return sum(first), sum(second)


def _copy(model: nn.Module) -> nn.Module | None:
    """Copy of the network that has seen no image of the study, or None if the network cannot be copied."""
    try:
        return copy.deepcopy(model)
    except Exception:  # noqa: BLE001 - a user's module may raise anything, and a copy serves one check alone
        return None


class _Batch:
    """Observations of one batch."""

    def __init__(
        self,
        model: nn.Module,
        fresh: nn.Module | None,
        images: Tensor,
        labels: Tensor,
        epsilon: float,
        norm: Norm,
        two_gradients: bool,
        abstain: int | None,
        seed: int,
        first: bool,
    ) -> None:
        self.model, self.epsilon, self.norm = model, epsilon, norm
        device = next((each.device for each in model.parameters()), images.device)
        images, labels = images.to(device), labels.to(device)
        with unseen(model):
            self.attempt = attempt = Attempt(model, images, labels, _seeding.generator(seed), abstain=abstain)
            self.index = torch.arange(len(images), device=device)
            self.outputs, self.clean = attempt.clean_outputs.cpu(), attempt.clean.cpu()
            self.differences: dict[Change, Difference] = {}
            self._repeat(two_gradients)
            attacked = self._attack()
            self._move(attacked, fresh, first)
            self.slopes: dict[Place, tuple[int, int]] = {
                "clean": disagreements(attempt, images, epsilon, norm),
                "attacked": disagreements(attempt, attacked, epsilon, norm),
            }
            self.jumps = jumps(attempt)
            self.differentiates = first and _differentiates(lambda: self._pass(images[:1], slice(1)))

    def _pass(self, points: Tensor, index: Tensor | slice = slice(None)) -> Tensor:
        """Outputs at points of the images `index`, by default of all."""
        with torch.no_grad():
            return self.attempt.forward(points, self.index[index])

    def _differ(self, change: Change, one: Tensor, other: Tensor) -> None:
        self.differences[change] = Difference.between(one, other, self.model)

    def _repeat(self, two_gradients: bool) -> None:
        """Pass the images again, without and with a gradient, and compare the two gradients."""
        attempt, images, outputs = self.attempt, self.attempt.images, self.attempt.clean_outputs
        begin = time.perf_counter()
        self._differ("repeated", outputs, self._pass(images))
        forward = time.perf_counter() - begin
        true, _, recorded = attempt.gradient(images, self.index, cross_entropy, "true")
        both = time.perf_counter() - begin - forward
        self.seconds = forward / len(images), max(both - forward, 0.0) / len(images)
        self._differ("recorded", outputs, recorded)
        self.cosines = torch.ones(len(images))
        if two_gradients:
            fed_back, _, _ = attempt.gradient(images, self.index, cross_entropy, "feedback")
            self.cosines = F.cosine_similarity(true.flatten(1).double(), fed_back.flatten(1).double()).float().cpu()

    def _attack(self) -> Tensor:
        """Attack in a few steps, and compare where they lead with where random signs do."""
        attempt, images = self.attempt, self.attempt.images
        attack = PGD(self.model, self.epsilon, steps=_STEPS, norm=self.norm, stop_at_success=False)
        noise = RandomSigns(self.model, self.epsilon, norm=self.norm)
        attacked = attack.perturb(attempt, self.index).detach()
        beside = noise.perturb(attempt, self.index)
        reached, random = (margin(self._pass(each), attempt.labels) for each in (attacked, beside))
        right = attempt.clean
        self.rises = int((reached > random)[right].sum()), int((reached < random)[right].sum())
        near = (images + noise.perturb(attempt, self.index)) / 2
        self.same = int((self._pass(near) == attempt.clean_outputs).all(1).sum())
        return attacked

    def _move(self, attacked: Tensor, fresh: nn.Module | None, first: bool) -> None:
        """Pass the images in another order and alone, and the attacked points twice and through a fresh copy."""
        attempt, images, outputs = self.attempt, self.attempt.images, self.attempt.clean_outputs
        order = torch.randperm(len(images), generator=attempt.generator).to(images.device)
        half = order[: (len(order) + 1) // 2]  # in other company, too
        answers = self._pass(attacked)
        self._differ("attacked", answers, self._pass(attacked))
        again = torch.cat([self._pass(images[half], half), self._pass(attacked[half], half)])
        self._differ("shuffled", torch.cat([outputs[half], answers[half]]), again)
        if first:
            few = [slice(each, each + 1) for each in range(min(_FEW, len(images)))]
            self._differ("alone", answers[: len(few)], torch.cat([self._pass(attacked[each], each) for each in few]))
        if fresh is not None:
            with unseen(fresh):
                other = Attempt(fresh, attacked, attempt.classes, attempt.generator, abstain=attempt.abstain)
                self._differ("unseen", answers, other.clean_outputs)


def _kind(outputs: Tensor) -> Outputs:
    """What outputs (n, C) are, by their values."""
    rounding = max(1e-4, 4 * torch.finfo(outputs.dtype).eps)
    values = outputs.double()
    if bool((values >= 0).all() and (values <= 1 + rounding).all()):
        return "probabilities" if bool(((values.sum(1) - 1).abs() < rounding).all()) else "values from 0 to 1"
    if bool((values <= rounding).all() and (values.logsumexp(1).abs() < 10 * rounding).all()):
        return "log-probabilities"
    return "logits"


def _differentiates(forward: Callable[[], object]) -> bool:
    """Whether a forward pass starts a backward pass of its own, as defences that optimise the image do.

    Every backward pass of torch on this thread goes through one function of its engine, however it was asked for.
    """
    found = False

    def watch(frame: FrameType, event: str, what: Any) -> None:
        nonlocal found
        found |= event == "c_call" and getattr(what, "__name__", "") == "run_backward"

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        forward()
    finally:
        sys.setprofile(before)
    return found
