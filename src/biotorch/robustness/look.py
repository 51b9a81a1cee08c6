"""Look at a network before it is attacked: what its answers depend on, and whether its gradient is one."""

from __future__ import annotations

import contextlib
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
from biotorch.robustness.attacks.attempt import Attempt, unseen
from biotorch.robustness.attacks.base import gradients_of
from biotorch.robustness.attacks.blind import RandomSigns
from biotorch.robustness.attacks.gradient import PGD
from biotorch.robustness.attacks.inputs import device_of
from biotorch.robustness.attacks.losses import cross_entropy, margin
from biotorch.robustness.attacks.norms import Norm
from biotorch.robustness.smoothness import disagreements, jumps, partners, precision

#: Steps of the short attack that leads to the attacked points.
_STEPS = 10
#: Number of images that are passed alone.
_FEW = 16

#: Kinds of a network's outputs, by their values.
Outputs = Literal["logits", "log-probabilities", "probabilities", "values from 0 to 1"]

#: Changes between two passes of the same images, whose outputs should be equal.
Change = Literal["repeated", "shuffled", "alone", "recorded", "attacked", "unseen"]

#: Places where a gradient is compared with finite differences: at the images, or at the end of a short attack.
Place = Literal["clean", "attacked"]


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
        outputs: kind of the outputs, by their values.
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
    abstain: int | None,
    seed: int,
    batch_size: int,
) -> Look:
    """Observe a network at images (n, ...) in [0, 1] with labels (n,), and at points up to epsilon away from them."""
    fresh, device = _copy(model), device_of(model, images)
    parts = []
    for start in range(0, len(images), batch_size):
        own, truth = (each[start : start + batch_size].to(device) for each in (images, labels))
        with unseen(model):
            attempt = Attempt(model, own, truth, _seeding.generator(seed), abstain=abstain)
            parts.append(_Batch(attempt, epsilon, norm, fresh, first=start == 0))
    clean = torch.cat([part.clean for part in parts])
    jumped = [(0, 0)]
    others = partners(torch.cat([part.attempt.clean_outputs.argmax(1).cpu() for part in parts]).tolist())
    if min(others) >= 0:
        far = images[torch.tensor(others, device=images.device)]
        with unseen(model):
            jumped = [
                jumps(part.attempt, far[index * batch_size :][: len(part.clean)].to(device))
                for index, part in enumerate(parts)
            ]
    cosines = torch.cat([part.cosines for part in parts])[clean]
    counts = labels.bincount().double()
    differences: dict[Change, Difference] = {}
    for change, found in (item for part in parts for item in part.differences.items()):
        differences[change] = differences.get(change, found) | found
    return Look(
        clean,
        100 * float(counts.max() / counts.sum()),
        float(cosines.mean()) if len(cosines) else math.nan,
        _kind(torch.cat([part.outputs for part in parts]), model),
        sum(int(part.outputs.isnan().any(1).sum()) for part in parts),
        differences,
        {place: _added(part.slopes[place] for part in parts) for place in parts[0].slopes},
        _added(iter(jumped)),
        _added(part.rises for part in parts),
        sum(part.same for part in parts) / len(images),
        parts[0].differentiates,
        parts[0].seconds,
    )


def _added(pairs: Iterator[tuple[int, int]]) -> tuple[int, int]:
    first, second = zip(*pairs, strict=True)
    return sum(first), sum(second)


def _copy(model: nn.Module) -> nn.Module | None:
    """Copy of the network that has seen no image of the study, or None if the network cannot be copied.

    Tensors with a gradient history, such as the weights of `weight_norm`, are copied by their values, and attributes of
    modules that cannot be copied, such as locks, are shared.
    """
    memo: dict[int, Any] = {}
    values = [value for module in model.modules() for value in vars(module).values()]
    for value in values:
        if isinstance(value, Tensor) and not value.is_leaf:
            memo[id(value)] = value.detach().clone()
        elif not isinstance(value, Tensor | Mapping) and not _copies(value):
            memo[id(value)] = value
    try:
        return copy.deepcopy(model, memo)
    except Exception:  # noqa: BLE001 - a user's module may raise anything, and a copy serves one check alone
        return None


def _copies(value: object) -> bool:
    try:
        copy.deepcopy(value)
    except Exception:  # noqa: BLE001 - as above
        return False
    return True


class _Batch:
    """Observations of one batch."""

    def __init__(self, attempt: Attempt, epsilon: float, norm: Norm, fresh: nn.Module | None, *, first: bool) -> None:
        self.attempt, self.epsilon, self.norm = attempt, epsilon, norm
        self.outputs, self.clean = attempt.clean_outputs.cpu(), attempt.clean.cpu()
        self.differences: dict[Change, Difference] = {}
        self._repeat()
        attacked = self._attack()
        self._move(attacked, fresh, first)
        self.slopes: dict[Place, tuple[int, int]] = {
            "clean": disagreements(attempt, attempt.images, epsilon, norm),
            "attacked": disagreements(attempt, attacked, epsilon, norm),
        }
        self.differentiates = first and _differentiates(lambda: self._pass(attempt.images))

    def _pass(self, points: Tensor, index: Tensor | slice = slice(None)) -> Tensor:
        """Outputs at points of the images `index`, by default of all."""
        with torch.no_grad():
            return self.attempt.forward(points, self.attempt.everyone[index])

    def _differ(self, change: Change, one: Tensor, other: Tensor) -> None:
        self.differences[change] = Difference.between(one, other, self.attempt.model)

    def _repeat(self) -> None:
        """Pass the images again, without and with a gradient, and compare the two gradients."""
        attempt, images, outputs = self.attempt, self.attempt.images, self.attempt.clean_outputs
        begin = time.perf_counter()
        self._differ("repeated", outputs, self._pass(images))
        forward = time.perf_counter() - begin
        true, _, recorded = attempt.gradient(images, attempt.everyone, cross_entropy, "true")
        both = time.perf_counter() - begin - forward
        self.seconds = forward / len(images), max(both - forward, 0.0) / len(images)
        self._differ("recorded", outputs, recorded)
        self.cosines = torch.ones(len(images))
        if len(gradients_of(attempt.model)) > 1:
            fed_back, _, _ = attempt.gradient(images, attempt.everyone, cross_entropy, "feedback")
            self.cosines = F.cosine_similarity(true.flatten(1).double(), fed_back.flatten(1).double()).float().cpu()

    def _attack(self) -> Tensor:
        """Attack in a few steps, and compare where they lead with where random signs do."""
        attempt, images = self.attempt, self.attempt.images
        attack = PGD(attempt.model, self.epsilon, steps=_STEPS, norm=self.norm, stop_at_success=False)
        noise = RandomSigns(attempt.model, self.epsilon, norm=self.norm)
        attacked = attack.perturb(attempt, attempt.everyone).detach()
        beside = noise.perturb(attempt, attempt.everyone)
        reached, random = (margin(self._pass(each), attempt.labels) for each in (attacked, beside))
        right = attempt.clean
        self.rises = int((reached > random)[right].sum()), int((reached < random)[right].sum())
        near = (images + noise.perturb(attempt, attempt.everyone)) / 2
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
            # A network may refuse a single image in any way; without a difference, the check says that it did not run.
            with contextlib.suppress(Exception):
                alone = torch.cat([self._pass(attacked[each], each) for each in few])
                self._differ("alone", answers[: len(few)], alone)
        if fresh is not None:
            with unseen(fresh):
                other = Attempt(fresh, attacked, attempt.classes, attempt.generator, abstain=attempt.abstain)
                self._differ("unseen", answers, other.clean_outputs)


def _kind(outputs: Tensor, model: nn.Module) -> Outputs:
    """Kind of outputs (n, C), by their values."""
    rounding = max(1e-4, 4 * precision(outputs, model))
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
