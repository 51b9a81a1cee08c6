"""Look at a network before it is attacked: what its answers depend on, and whether its gradient is one."""

from __future__ import annotations

import copy
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from biotorch import _seeding
from biotorch.robustness.attacks.attempt import Attempt, cross_entropy, margin
from biotorch.robustness.attacks.base import unseen
from biotorch.robustness.attacks.blind import RandomSigns
from biotorch.robustness.attacks.gradient import PGD
from biotorch.robustness.attacks.norms import Norm
from biotorch.robustness.observations import Change, Difference, Look, Outputs, Place
from biotorch.robustness.smoothness import disagreements, jumps, partners, precision

#: Steps of the short attack that leads to the attacked points.
_STEPS = 10
#: Number of images that are passed alone.
_FEW = 16


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
    jumped = [(0, 0)]
    others = partners(torch.cat([part.attempt.clean_outputs.argmax(1).cpu() for part in parts]).tolist())
    if min(others) >= 0:
        far = images[torch.tensor(others, device=images.device)]
        with unseen(model):
            jumped = [
                jumps(part.attempt, far[index * batch_size :][: len(part.clean)].to(part.device))
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
        self.device = device = next((each.device for each in model.parameters()), images.device)
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
            self.differentiates = first and _differentiates(lambda: self._pass(images))

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
            try:
                alone = torch.cat([self._pass(attacked[each], each) for each in few])
                self._differ("alone", answers[: len(few)], alone)
            except Exception:  # noqa: BLE001 - a network may refuse a single image in any way; the check could not run
                self.differences.pop("alone", None)
        if fresh is not None:
            with unseen(fresh):
                other = Attempt(fresh, attacked, attempt.classes, attempt.generator, abstain=attempt.abstain)
                self._differ("unseen", answers, other.clean_outputs)


def _kind(outputs: Tensor, model: nn.Module) -> Outputs:
    """What outputs (n, C) are, by their values."""
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
