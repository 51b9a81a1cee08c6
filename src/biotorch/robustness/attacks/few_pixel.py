"""Few-pixel attack by differential evolution."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from biotorch.robustness.attacks.attempt import Attempt
from biotorch.robustness.attacks.base import Attack, Role
from biotorch.robustness.attacks.inputs import require, require_counts
from biotorch.robustness.attacks.losses import LOSSES, LossName

#: F of differential evolution (Su et al. 2019).
_MUTATION = 0.5


class FewPixel(Attack):
    """Changes a few pixels by any amount, and uses only outputs (Su et al. 2019; the paper's appendix 6.3).

    A candidate is, for each of k pixels, a row, a column and one value per channel. `population` candidates
    x_1 ... x_P evolve by x_i' = x_a + 0.5 (x_b - x_c), where a, b, c and i differ; x_i' takes the place of x_i if its
    loss is at least as high (rand/1, without crossover). They start at uniformly drawn places, with values from the
    normal distribution of mean 0.5 and standard deviation 0.5, clamped to [0, 1].

    All images of a batch evolve at once, in shared forward passes of at most batch_size or `population` candidates,
    whichever is more. An image leaves after the pass that has broken it.

    Deviations: Su et al. maximise the probability of a wrong class or minimise the true class's; this attack maximises
    any loss. They do not say how to treat values outside their range; here rows and columns are drawn again, and
    channel values are clamped. As there, a candidate may choose a pixel twice; the last one counts.

    Args:
        model, seed, batch_size, abstain: see `Attack`. Images are (n, C, H, W).
        pixels: k, which is also the radius: `epsilon` is float(pixels).
        steps: number of generations after the first population.
        population: P, candidates per image; at least 4.
        loss: `ce`, `margin` or `dlr`, see `biotorch.robustness.attacks.losses`.

    Examples:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        >>> images = torch.rand(2, 1, 8, 8)
        >>> attack = biotorch.robustness.FewPixel(model, pixels=2, steps=3, population=8)
        >>> changed = attack(images, model(images).argmax(1)) != images
        >>> changed.sum((1, 2, 3)).max().item() <= 2
        True
    """

    role: ClassVar[Role] = "no radius"
    norms: ClassVar[tuple[str, ...]] = ("l0",)
    targeted: ClassVar[bool] = True
    fixed: ClassVar[Mapping[str, str]] = {
        "epsilon": "its radius is the number of pixels",
        "norm": "it counts pixels",
    }

    def __init__(
        self,
        model: nn.Module,
        pixels: int = 1,
        *,
        steps: int = 30,
        population: int = 150,
        loss: LossName = "margin",
        seed: int = 0,
        batch_size: int = 250,
        abstain: int | None = None,
    ) -> None:
        self.pixels, self.steps, self.population = require_counts(pixels=pixels, steps=steps, population=population)
        require(population >= 4, f"population: at least 4 are needed (a candidate and three others), not {population}")
        require(loss in LOSSES, f"loss: one of {', '.join(LOSSES)} is needed, not {loss!r}")
        norm: Any = "l0"
        super().__init__(model, float(pixels), norm=norm, seed=seed, batch_size=batch_size, abstain=abstain)
        self.loss = loss

    def perturb(self, attempt: Attempt, index: Tensor) -> Tensor:
        _require_images(attempt.images)
        best = attempt.images[index].clone()
        active = torch.arange(len(index), device=best.device)
        for step in range(self.steps + 1):
            if step == 0:
                members = self._first(attempt, len(active))
                losses = torch.full(members.shape[:2], -torch.inf, dtype=best.dtype, device=best.device)
                trials = members
            else:
                trials = self._children(attempt, members)
            found, broken = self._evaluate(attempt, index[active], trials)
            better = (found >= losses) | broken
            members = torch.where(better[..., None, None], trials, members)
            losses = torch.where(better, found, losses)
            # A loss other than the margin may be highest at a candidate that breaks nothing.
            chosen = torch.where(broken, torch.inf, losses).argmax(1)
            attempt.record(losses.amax(1), index[active])
            done = broken.any(1) if step < self.steps else torch.ones_like(active, dtype=torch.bool)
            winners = members[done, chosen[done]]
            best[active[done]] = self._drawn(best[active[done]], winners[:, None])[:, 0]
            active, members, losses = active[~done], members[~done], losses[~done]
            if not len(active):
                break
        return best

    def _first(self, attempt: Attempt, count: int) -> Tensor:
        """First population (count, P, k, 2 + C): row and column as shares of height and width, then channel values."""
        channels, dtype = attempt.images.shape[1], attempt.images.dtype
        shape = (count, self.population, self.pixels)
        places = torch.rand(*shape, 2, generator=attempt.generator, dtype=dtype)
        values = torch.randn(*shape, channels, generator=attempt.generator, dtype=dtype) / 2 + 0.5
        return torch.cat([places, values.clamp(0, 1)], dim=3).to(attempt.images.device)

    def _children(self, attempt: Attempt, members: Tensor) -> Tensor:
        """One mutant x_a + F (x_b - x_c) for each member (m, P, k, 2 + C)."""
        rows = torch.arange(len(members), device=members.device)[:, None]
        a, b, c = (each.to(members.device) for each in _others(len(members), self.population, attempt.generator))
        mutants = members[rows, a] + _MUTATION * (members[rows, b] - members[rows, c])
        places, values = mutants[..., :2], mutants[..., 2:]
        drawn = torch.rand(places.shape, generator=attempt.generator, dtype=places.dtype).to(places.device)
        places = torch.where((places >= 0) & (places < 1), places, drawn)
        return torch.cat([places, values.clamp(0, 1)], dim=3)

    def _evaluate(self, attempt: Attempt, index: Tensor, trials: Tensor) -> tuple[Tensor, Tensor]:
        """Losses (m, P) of the candidates of images `index`, and whether each breaks its image.

        A pass takes the next few candidates of all images that no candidate has broken yet. Candidates that are never
        evaluated have a loss of -∞.
        """
        losses = torch.full(trials.shape[:2], -torch.inf, dtype=trials.dtype, device=trials.device)
        broken = torch.zeros(trials.shape[:2], dtype=torch.bool, device=trials.device)
        active, start = torch.arange(len(index), device=index.device), 0
        while start < self.population and len(active):
            part = slice(start, start + max(1, max(self.batch_size, self.population) // len(active)))
            points = self._drawn(attempt.images[index[active]], trials[active, part])
            owners = index[active].repeat_interleave(points.shape[1])
            with torch.no_grad():
                outputs = attempt.outputs(points.flatten(0, 1), owners)
            found = attempt.loss(self.loss, owners)(outputs, attempt.labels[owners])
            found = found.reshape(points.shape[:2]).to(losses)
            losses[active, part] = found.masked_fill(found.isnan(), -torch.inf)
            broken[active, part] = ~attempt.withstand(outputs, owners).reshape(points.shape[:2])
            start, active = part.stop, active[~broken[active].any(1)]
        return losses, broken

    def _drawn(self, images: Tensor, candidates: Tensor) -> Tensor:
        """Images (m, C, H, W) with each of their candidates (m, p, k, 2 + C) drawn in: (m, p, C, H, W)."""
        (height, width), (count, each) = images.shape[2:], candidates.shape[:2]
        points = images[:, None].repeat(1, each, 1, 1, 1)
        row = (candidates[..., 0] * height).long().clamp(max=height - 1)
        column = (candidates[..., 1] * width).long().clamp(max=width - 1)
        first = torch.arange(count, device=images.device)[:, None]
        second = torch.arange(each, device=images.device)[None]
        for pixel in range(self.pixels):  # one after another, so that of two at the same place the last one counts
            points[first, second, :, row[..., pixel], column[..., pixel]] = candidates[..., pixel, 2:]
        return points

    def distance(self, adversarial: Tensor, images: Tensor) -> Tensor:
        """Number of pixels of each image that differ: (n,)."""
        _require_images(images)
        return (adversarial != images).any(1).flatten(1).sum(1).to(images)

    @property
    def passes(self) -> tuple[int, int]:
        return self.population * (self.steps + 1), 0


def _require_images(images: Tensor) -> None:
    require(images.dim() == 4, f"images: FewPixel needs (n, C, H, W), not {tuple(images.shape)}")


def _others(count: int, population: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Indices of three others for each member, all different and uniformly drawn: (count, population) each."""
    a, b, c = (torch.randint(population - k, (count, population), generator=generator) for k in (1, 2, 3))
    # Each draw is a position among the members that the draws before it have left.
    b = b + (b >= a)
    c = c + (c >= torch.minimum(a, b))
    c = c + (c >= torch.maximum(a, b))
    own = torch.arange(population)
    return (own + 1 + a) % population, (own + 1 + b) % population, (own + 1 + c) % population
