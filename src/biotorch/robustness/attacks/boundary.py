"""Attacks that step to the boundaries of the linearised network: DeepFool and FAB."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Unpack

import torch
from pyautoattack.fab_projections import projection_l1, projection_l2, projection_linf
from pyautoattack.fab_pt import FABAttack_PT
from torch import Tensor, nn

from biotorch.robustness.attacks import library
from biotorch.robustness.attacks.attempt import Attempt, classified
from biotorch.robustness.attacks.gradient import WhiteBoxArguments
from biotorch.robustness.attacks.inputs import is_number, require, require_counts
from biotorch.robustness.attacks.losses import towards
from biotorch.robustness.attacks.norms import Norm, size
from biotorch.robustness.attacks.smallest import Minimal

#: Norm of a gradient that gives the distance to a plane in each norm.
_DUAL: dict[Norm, Norm] = {"linf": "l1", "l2": "l2", "l1": "linf"}

#: Smallest step from points (m, d) to the planes w·x = b, w (m, d) and b (m,), within [0, 1].
_PROJECTIONS = {"linf": projection_linf, "l2": projection_l2, "l1": projection_l1}


class DeepFool(Minimal):
    """Steps across the nearest boundary of the linearised network (Moosavi-Dezfooli et al. 2016, algorithm 2).

    With f_k = z_k - z_y and w_k = ∇_x f_k, a step r leads from the point p to the plane f_k + w_k·r = 0 of the wrong
    class k for which |f_k| / |w_k| is smallest (dual norm). The next point is x + (1 + overshoot) (p + r - x). An image
    is finished at the first misclassified point.

    Deviation: r is the smallest step with p + r in [0, 1]; the library pyautoattack projects on the plane. In the paper
    pixels may take any value; where they are clamped afterwards, many images are never broken.

    Args:
        model, epsilon, norm, gradient, seed, batch_size: see `WhiteBox`.
        steps: largest number of steps.
        overshoot: share by which a step goes beyond the plane.
        candidates: number of wrong classes that are considered, those with the highest outputs at the image.

    Examples:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        >>> images = torch.rand(20, 1, 8, 8)
        >>> found = biotorch.robustness.DeepFool(model, norm="l2").smallest(images, model(images).argmax(1))
        >>> found.distances.isfinite().all().item()
        True
    """

    def __init__(
        self,
        model: nn.Module,
        epsilon: float = 8 / 255,
        *,
        steps: int = 50,
        overshoot: float = 0.02,
        candidates: int = 9,
        **white_box: Unpack[WhiteBoxArguments],
    ) -> None:
        super().__init__(model, epsilon, **white_box)
        require_counts(steps=steps, candidates=candidates)
        require(is_number(overshoot) and overshoot >= 0, f"overshoot: a number from 0 on is needed, not {overshoot!r}")
        self.steps, self.overshoot, self.candidates = steps, overshoot, candidates

    def search(self, attempt: Attempt, index: Tensor) -> Tensor:
        images = attempt.images[index]
        ranked = attempt.clean_outputs[index].scatter(1, attempt.labels[index][:, None], -torch.inf)
        wrong = ranked.topk(min(self.candidates, ranked.shape[1] - 1), dim=1).indices
        found, points = images.clone(), images.clone()
        active = torch.arange(len(index), device=images.device)
        for _ in range(self.steps):
            own, here = images[active], points[active]
            on_plane = here + self._step(attempt, here, index[active], wrong[active])
            points[active] = here = (own + (1 + self.overshoot) * (on_plane - own)).clamp(0, 1)
            right = attempt.right(here, index[active])
            found[active[~right]] = here[~right]
            active = active[right]
            if not len(active):
                break
        return found

    def _step(self, attempt: Attempt, points: Tensor, index: Tensor, wrong: Tensor) -> Tensor:
        """Smallest step (m, ...) within [0, 1] from the points to the nearest plane of the classes `wrong` (m, k)."""
        slope, height = torch.zeros_like(points), points.new_zeros(len(points))
        nearest = torch.full_like(height, torch.inf)
        for classes in wrong.T:
            gradient, leads, _ = attempt.gradient(points, index, towards(classes), self.gradient)
            leads = leads.to(points)
            distances = (leads.abs() / size(gradient, _DUAL[self.norm])).nan_to_num(torch.inf)
            nearer = distances < nearest
            slope[nearer], height[nearer], nearest[nearer] = gradient[nearer], leads[nearer], distances[nearer]
        flat, w = points.flatten(1).float(), slope.flatten(1).float()
        step: Tensor = _PROJECTIONS[self.norm](flat, w, (w * flat).sum(1) - height.float())
        return step.to(points).reshape(points.shape).nan_to_num(0, 0, 0)

    @property
    def passes(self) -> tuple[int, int]:
        return self.steps * (self.candidates + 1), self.steps * self.candidates


class FAB(Minimal):
    """Fast adaptive boundary attack (Croce and Hein 2020, "Minimally distorted adversarial examples").

    Like `DeepFool` it steps to the plane where the linearised network changes its class, but within [0, 1] and with a
    bias towards the image; from a misclassified point it goes back, and on. The library pyautoattack runs it.

    Args:
        model, epsilon, norm, gradient, seed, batch_size: see `WhiteBox`. The norm is `linf`, `l2` or `l1`.
        steps: number of steps.
        classes: None to step towards the nearest wrong class, which takes a backward pass per class. A number makes one
            search for each of so many wrong classes, those with the highest outputs at the image (targeted FAB, with
            one backward pass per step).

    Examples:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        >>> images = torch.rand(20, 1, 8, 8)
        >>> found = biotorch.robustness.FAB(model, norm="l1", steps=20).smallest(images, model(images).argmax(1))
        >>> found.distances.isfinite().all().item()
        True
    """

    edition = 2  # in the first, a single logit counted as a zero gradient

    def __init__(
        self,
        model: nn.Module,
        epsilon: float = 8 / 255,
        *,
        steps: int = 100,
        classes: int | None = None,
        **white_box: Unpack[WhiteBoxArguments],
    ) -> None:
        super().__init__(model, epsilon, **white_box)
        require_counts(steps=steps, **({} if classes is None else {"classes": classes}))
        self.steps, self.classes = steps, classes

    def search(self, attempt: Attempt, index: Tensor) -> Tensor:
        images, labels = attempt.images[index], attempt.labels[index]
        found = images.clone()
        nearest = torch.full((len(index),), torch.inf, dtype=images.dtype, device=images.device)
        for run in self._runs(attempt, index):
            active = (nearest > self.enough).nonzero()[:, 0]
            if not len(active):
                break
            own = images[active]
            points = run(own.float().contiguous(), labels[active], index[active]).detach().to(own)
            points = torch.where(points.isfinite(), points, own).clamp(0, 1)
            with torch.no_grad():  # not counted: the library itself knows which images it has broken
                right = classified(attempt.forward(points, index[active]), labels[active])
            distances = size(points - own, self.norm).masked_fill(right, torch.inf)
            better = distances < nearest[active]
            found[active[better]], nearest[active[better]] = points[better], distances[better]
        return found

    def _runs(self, attempt: Attempt, index: Tensor) -> Iterator[library.Run]:
        shown = library.Shown(attempt, self.gradient, index, again=self.classes is None)
        search = FABAttack_PT(shown, norm=library.NORMS[self.norm], n_iter=self.steps, device=attempt.images.device)
        if self.classes is None:
            yield across(None, search, shown)
        for target in range(min(self.classes or 0, attempt.clean_outputs.shape[1] - 1)):
            yield across(target + 2, search, shown)

    @property
    def passes(self) -> tuple[int, int]:
        """Largest number of forward and of backward passes per image, as if there were ten classes."""
        backward = self.steps * (10 if self.classes is None else self.classes)
        return (self.classes or 1) * (2 * self.steps + 2), backward


def across(target: int | None, search: Any, shown: library.Shown) -> library.Run:
    """Run of FAB across the boundary to the class with the `target`-highest output at the image; None: to any class."""

    def start(images: Tensor, labels: Tensor, index: Tensor) -> Tensor:
        shown.index, search.target_class = index, target
        with torch.no_grad():
            return search.attack_single_run(images, labels, is_targeted=target is not None)  # type: ignore[no-any-return]

    return start
