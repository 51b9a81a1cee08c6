"""Smallest perturbation of each image: what attacks that look for it have in common, and C&W."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor, nn

from biotorch.robustness.attacks.attempt import Attempt, classified
from biotorch.robustness.attacks.gradient import WhiteBox, WhiteBoxArguments
from biotorch.robustness.attacks.inputs import is_number, read, require, require_counts
from biotorch.robustness.attacks.losses import margin
from biotorch.robustness.attacks.norms import Norm, per_example, size


@dataclasses.dataclass(frozen=True)
class Smallest:
    """Smallest perturbations that an attack has found for n images.

    Attributes:
        norm: norm of the distances.
        distances: (n,), distance of each adversarial example from its image: 0 if the image is misclassified without an
            attack, infinite if the attack has found no example.
        adversarial: (n, ...) in [0, 1], the image itself where the distance is 0 or infinite.
        clean: (n,) bool, whether the image itself is classified as labelled.
        queries: (n,) int64, forward passes that the attack took.

    Examples:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        >>> images = torch.rand(20, 1, 8, 8)
        >>> found = biotorch.robustness.DeepFool(model, norm="l2").smallest(images, model(images).argmax(1))
        >>> found.accuracy([0.0, found.median, 10.0])
        [100.0, 50.0, 0.0]
    """

    norm: Norm
    distances: Tensor
    adversarial: Tensor
    clean: Tensor
    queries: Tensor

    @property
    def median(self) -> float:
        """Median distance of the images that are classified as labelled; NaN if there is none.

        With an even number of images it is the lower of the two in the middle. It is infinite if the attack breaks less
        than half of them.
        """
        found = self.distances[self.clean]
        return float(found.median()) if len(found) else math.nan

    def accuracy(self, epsilons: Sequence[float]) -> list[float]:
        """Accuracy (%) at each epsilon: the share of the n images whose distance is larger."""
        return [100 * float((self.distances > epsilon).double().mean()) for epsilon in epsilons]


class Minimal(WhiteBox):
    """An attack that looks for the smallest perturbation of each image.

    With `smallest` it needs no epsilon. As an `Attack`, it breaks the images for which it finds a perturbation within
    epsilon, and returns the others as they are.

    Args:
        model, epsilon, norm, gradient, seed, batch_size: see `WhiteBox`.
    """

    fixed: ClassVar[Mapping[str, str]] = {"loss": "it has its own loss"}

    def __init__(self, model: nn.Module, epsilon: float = 8 / 255, **white_box: Unpack[WhiteBoxArguments]) -> None:
        super().__init__(model, epsilon, **white_box)
        #: Distance at which the search for an image may end.
        self.enough = self.epsilon

    def smallest(self, images: Any, labels: Any = None, on_batch: Callable[[int], None] | None = None) -> Smallest:
        """Look for the smallest perturbation of each image, whatever epsilon.

        Args:
            images, labels, on_batch: see `run`.

        Raises:
            ValueError, BoundsError, RuntimeError: under the same conditions as `run`.
        """
        images, labels = read(images, labels)
        unbounded = copy.copy(self)
        unbounded.epsilon, unbounded.enough = math.inf, 0.0
        outcome = unbounded.run(images, labels, on_batch)
        distances = self.distance(outcome.adversarial, images).cpu().masked_fill(outcome.robust, math.inf)
        return Smallest(self.norm, distances, outcome.adversarial, outcome.clean, outcome.queries)

    def perturb(self, attempt: Attempt, index: Tensor) -> Tensor:
        images = attempt.images[index]
        points = self.search(attempt, index)
        return torch.where(per_example(self.distance(points, images) > self.epsilon, images), images, points)

    def search(self, attempt: Attempt, index: Tensor) -> Tensor:
        """Nearest misclassified points (m, ...) found for the images `index` (m,); where none is found, the images."""
        raise NotImplementedError


class CW(Minimal):
    """C&W attack in L2: gradient descent on distance and margin together (Carlini and Wagner 2017, section VI.A).

    It minimises |x' - x|² + c max(z_y - max_{k≠y} z_k, 0) over w with x' = (tanh(w) + 1) / 2, by Adam, starting at the
    image. Binary search finds the constant c of each image, which grows tenfold until there is an example. The nearest
    example of all searches counts.

    Deviations: 5 searches of 200 steps from c = 1, with a step size that falls to 0; the authors make up to 20 searches
    of 10,000 equal steps from c = 0.001.

    Args:
        model, epsilon, gradient, seed, batch_size: see `WhiteBox`.
        norm: `l2`.
        steps: number of steps in each search.
        searches: number of values of c.
        step_size: first step size of Adam.
        first: first value of c.

    Examples:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        >>> images = torch.rand(20, 1, 8, 8)
        >>> found = biotorch.robustness.CW(model, steps=50).smallest(images, model(images).argmax(1))
        >>> found.distances.isfinite().all().item()
        True
    """

    norms: ClassVar[tuple[str, ...]] = ("l2",)

    def __init__(  # type: ignore[misc]  # the norm has another default than that of its base class
        self,
        model: nn.Module,
        epsilon: float = 0.5,
        *,
        norm: Norm = "l2",
        steps: int = 200,
        searches: int = 5,
        step_size: float = 0.1,
        first: float = 1.0,
        **white_box: Unpack[WhiteBoxArguments],
    ) -> None:
        super().__init__(model, epsilon, norm=norm, **white_box)
        require_counts(steps=steps, searches=searches)
        for name, value in {"step_size": step_size, "first": first}.items():
            require(is_number(value) and value > 0, f"{name}: a number above 0 is needed, not {value!r}")
        self.steps, self.searches, self.step_size, self.first = steps, searches, step_size, first

    def search(self, attempt: Attempt, index: Tensor) -> Tensor:
        found = attempt.images[index].clone()
        nearest = torch.full((len(index),), torch.inf, dtype=found.dtype, device=found.device)
        low, high, constant = torch.zeros_like(nearest), nearest.clone(), torch.full_like(nearest, self.first)
        for _ in range(self.searches):
            active = (nearest > self.enough).nonzero()[:, 0]
            if not len(active):
                break
            points, distances = self._descend(attempt, index[active], constant[active])
            broken = distances.isfinite()
            better = distances < nearest[active]
            found[active[better]], nearest[active[better]] = points[better], distances[better]
            high[active[broken]], low[active[~broken]] = constant[active[broken]], constant[active[~broken]]
            constant = torch.where(high.isfinite(), (low + high) / 2, 10 * low)
        return found

    def _descend(self, attempt: Attempt, index: Tensor, constant: Tensor) -> tuple[Tensor, Tensor]:
        """Nearest misclassified points (m, ...) on the way of one search, with their distances (m,), ∞ without any."""
        images = attempt.images[index]
        found, nearest = images.clone(), torch.full_like(constant, torch.inf)
        free = torch.atanh((2 * images - 1) * 0.999999)  # w; its value at 0 and 1 would be infinite
        optimizer = torch.optim.Adam([free], lr=self.step_size)
        for step in range(self.steps):
            optimizer.param_groups[0]["lr"] = self.step_size * (1 - step / self.steps)
            tanh = free.tanh()
            points = (tanh + 1) / 2
            gradient, margins, outputs = attempt.gradient(points, index, margin, self.gradient)
            distances = size(points - images, "l2")
            better = ~classified(outputs, attempt.labels[index]) & (distances < nearest)
            found[better], nearest[better] = points[better], distances[better]
            pull = per_example(constant * (margins < 0), points) * gradient
            free.grad = (2 * (points - images) - pull) * (1 - tanh**2) / 2
            optimizer.step()
        return found, nearest

    @property
    def passes(self) -> tuple[int, int]:
        return self.searches * self.steps, self.searches * self.steps
