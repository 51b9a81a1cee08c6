"""Attacks that follow a gradient: FGSM (one step), PGD (many steps), EOT-PGD (mean gradients) and TPGD (KL loss)."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from typing import ClassVar, Unpack

import torch
from torch import Tensor, nn

from biotorch.robustness.attacks.attempt import Attempt, Gradient
from biotorch.robustness.attacks.base import Attack, Common, Role
from biotorch.robustness.attacks.inputs import is_number, require, require_counts
from biotorch.robustness.attacks.losses import LOSSES, Loss, LossName, divergence
from biotorch.robustness.attacks.norms import project, random_point, steepest


class WhiteBoxArguments(Common, total=False):
    """Keyword arguments of every attack that follows a gradient, see `WhiteBox`."""

    gradient: Gradient
    loss: LossName


class WhiteBox(Attack):
    """An attack that follows the gradient of a loss with respect to the image.

    Args:
        model, epsilon, norm, seed, batch_size: see `Attack`.
        gradient: `true` is the network's own gradient, which an attacker with the weights can compute. `feedback` is
            the signal that the learning rule sends back to the image instead (under a direct rule B_1 e, where e is
            the error of the attacked batch). The paper measured the latter (section 4.2).
        loss: `ce`, `margin` or `dlr`, see `biotorch.robustness.attacks.losses`.
    """

    white_box: ClassVar[bool] = True
    role: ClassVar[Role] = "white box"

    def __init__(
        self,
        model: nn.Module,
        epsilon: float = 8 / 255,
        *,
        gradient: Gradient = "true",
        loss: LossName = "ce",
        **common: Unpack[Common],
    ) -> None:
        super().__init__(model, epsilon, **common)
        known = typing.get_args(Gradient)
        require(gradient in known, f"gradient: {' or '.join(map(repr, known))} is needed, not {gradient!r}")
        require(loss in LOSSES, f"loss: one of {', '.join(LOSSES)} is needed, not {loss!r}")
        self.gradient, self.loss = gradient, loss

    def objective(self, attempt: Attempt, index: Tensor) -> Loss:
        """Loss that the attack raises at the images `index`."""
        return attempt.loss(self.loss, index)

    def ascent(self, attempt: Attempt, points: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradient (m, ...), losses (m,) and outputs (m, C) at the points, see `Attempt.gradient`."""
        return attempt.gradient(points, index, self.objective(attempt, index), self.gradient)


class FGSM(WhiteBox):
    """Fast gradient sign method: one step of length epsilon (Goodfellow et al. 2015; the paper's equation 5).

    x_adv = x + epsilon sign(∇_x L(f(x), y)), clamped to [0, 1]; in L2 the step is epsilon g / |g|. Every image is
    perturbed, including misclassified ones.

    Examples:
        >>> model = biotorch.convert(nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10)), "fa")
        >>> images = torch.rand(4, 1, 8, 8)
        >>> attack = biotorch.robustness.FGSM(model, epsilon=0.1, gradient="true")
        >>> attack.run(images, model(images).argmax(1)).queries
        tensor([1, 1, 1, 1])
    """

    role: ClassVar[Role] = "single step"
    targeted = True
    edition = 2  # in the first, steps in L1 chose values that could not move
    skips_solved = False

    def perturb(self, attempt: Attempt, index: Tensor) -> Tensor:
        images = attempt.images[index]
        gradient, losses, _ = self.ascent(attempt, images, index)
        attempt.record(losses, index)
        step = self.epsilon * steepest(gradient, self.norm, self.epsilon, images)
        return project(images + step, images, self.epsilon, self.norm)

    @property
    def passes(self) -> tuple[int, int]:
        return 1, 1


class PGDArguments(WhiteBoxArguments, total=False):
    """Keyword arguments of `PGD` and its subclasses."""

    steps: int
    step_size: float | None
    random_start: bool
    restarts: int
    stop_at_success: bool


class PGD(WhiteBox):
    """Projected gradient descent: steps along the gradient (Madry et al. 2018; the paper's equation 6).

    x_{t+1} = Π(x_t + alpha sign(∇_x L(f(x_t), y))), where Π projects into the ball of radius epsilon around x
    and into [0, 1]; in L2 the step is alpha g / |g|.

    Args:
        model, epsilon, gradient, loss, norm, seed, batch_size: see `WhiteBox`.
        steps: number of steps.
        step_size: alpha. Default: 2.5 epsilon / steps.
        random_start: start at a random point of the ball instead of at the image.
        restarts: number of independent starts. An image counts as broken if one of them breaks it.
        stop_at_success: stop at the first point of each image that breaks it, unless the network is noisy. Otherwise
            all steps are made and the last point is returned. It usually lies deeper inside the wrong class, which is
            better for transfer and adversarial training.

    Examples:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        >>> images = torch.rand(4, 1, 8, 8)
        >>> attack = biotorch.robustness.PGD(model, epsilon=0.5, steps=10)
        >>> attack.run(images, model(images).argmax(1)).robust.sum().item()
        0
    """

    role: ClassVar[Role] = "steps"
    targeted = True
    edition = 2  # as that of FGSM

    def __init__(
        self,
        model: nn.Module,
        epsilon: float = 8 / 255,
        *,
        steps: int = 40,
        step_size: float | None = None,
        random_start: bool = True,
        restarts: int = 1,
        stop_at_success: bool = True,
        **white_box: Unpack[WhiteBoxArguments],
    ) -> None:
        super().__init__(model, epsilon, **white_box)
        self.steps, self.restarts = require_counts(steps=steps, restarts=restarts)
        require(
            step_size is None or (is_number(step_size) and step_size > 0),
            f"step_size: a number above 0 is needed, not {step_size!r}",
        )
        self.random_start = random_start
        self.step_size = 2.5 * self.epsilon / self.steps if step_size is None else float(step_size)
        self.stop_at_success = self.skips_solved = stop_at_success

    def perturb(self, attempt: Attempt, index: Tensor) -> Tensor:
        best = attempt.images[index].clone()
        highest = torch.full((len(index),), -torch.inf, device=best.device, dtype=best.dtype)
        open_ones = torch.arange(len(index), device=best.device)
        for restart in range(self.restarts):
            points, broken, losses = self._descend(attempt, index[open_ones], record=restart == 0)
            # A point that breaks the image outranks any loss.
            losses = losses.masked_fill(broken, torch.inf)
            better = losses > highest[open_ones]
            best[open_ones[better]], highest[open_ones[better]] = points[better], losses[better].to(highest)
            if self._stops(attempt):
                open_ones = open_ones[~broken]
            if not len(open_ones):
                break
        return best

    def _descend(self, attempt: Attempt, index: Tensor, record: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Run one start: its last points (m, ...), whether each breaks its image (m,), and their losses (m,)."""
        images, points = attempt.images[index], self.start(attempt, index)
        last, final = torch.empty_like(points), torch.empty(len(index), device=images.device, dtype=images.dtype)
        broken = torch.zeros(len(index), dtype=torch.bool, device=images.device)
        # Everything below is about the active images only, so that no step copies the others.
        active = torch.arange(len(index), device=images.device)
        # The last point is evaluated only to detect success, to choose among starts, or for figures.
        stops = self._stops(attempt)
        judged = attempt.judged or stops or self.restarts > 1
        for number in range(self.steps + judged):
            if number < self.steps:
                gradient, losses, outputs = self.ascent(attempt, points, index)
            else:
                losses, outputs = self.judge(attempt, points, index)
            if record:
                attempt.record(losses, index)
            wrong = ~attempt.withstand(outputs, index)
            if number == self.steps:
                break
            if stops and bool(wrong.any()):
                last[active], broken[active], final[active] = points, wrong, losses.to(final)
                state = active, index, images, points, gradient, losses, wrong
                active, index, images, points, gradient, losses, wrong = (each[~wrong] for each in state)
                if not len(active):
                    break
            step = self.step_size * steepest(gradient, self.norm, self.step_size, points)
            points = project(points + step, images, self.epsilon, self.norm)
        last[active], broken[active], final[active] = points, wrong, losses.to(final)
        return last, broken, final

    def _stops(self, attempt: Attempt) -> bool:
        """Whether to stop at success. In a noisy network the next evaluation often takes the success back."""
        return self.stop_at_success and attempt.repeats

    def start(self, attempt: Attempt, index: Tensor) -> Tensor:
        """First points of the steps: (m, ...)."""
        images = attempt.images[index]
        if not self.random_start:
            return images.clone()
        return random_point(images, self.epsilon, self.norm, attempt.generator)

    def judge(self, attempt: Attempt, points: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Losses (m,) and outputs (m, C) at the points, without a gradient."""
        with torch.no_grad():
            outputs = attempt.outputs(points, index)
        return self.objective(attempt, index)(outputs, attempt.labels[index]), outputs

    @property
    def passes(self) -> tuple[int, int]:
        return self.restarts * (self.steps + 1), self.restarts * self.steps


class EOTPGD(PGD):
    """Expectation over transformation (EOT) PGD: follows a mean of gradients, for noisy networks (Zimmermann 2019).

    g = 1/k Σ_i ∇_x L(f_i(x), y), where f_1 ... f_k are evaluations of the same network at the same point. The paper
    calls it APGD, "averaged PGD" (appendix 6.3), which is not Auto-PGD. A deterministic network returns k equal
    gradients, so the result equals PGD's at k times the cost.

    Args:
        model, epsilon, steps, step_size, random_start, restarts, stop_at_success, gradient, loss, norm, seed,
            batch_size: see `PGD`.
        samples: k, gradients per step.

    Examples:
        >>> model = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(64, 10))
        >>> attack = biotorch.robustness.EOTPGD(model, epsilon=0.1, steps=5, samples=4)
        >>> attack(torch.rand(4, 1, 8, 8), torch.arange(4)).shape
        torch.Size([4, 1, 8, 8])
    """

    def __init__(
        self, model: nn.Module, epsilon: float = 8 / 255, *, samples: int = 10, **pgd: Unpack[PGDArguments]
    ) -> None:
        super().__init__(model, epsilon, **pgd)
        (self.samples,) = require_counts(samples=samples)

    def ascent(self, attempt: Attempt, points: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradient, losses and outputs, each averaged over the samples."""
        parts = [super(EOTPGD, self).ascent(attempt, points, index) for _ in range(self.samples)]
        gradient, losses, outputs = (torch.stack(part).mean(0) for part in zip(*parts, strict=True))
        return gradient, losses, outputs

    @property
    def passes(self) -> tuple[int, int]:
        return self.restarts * (self.samples * self.steps + 1), self.restarts * self.samples * self.steps


#: Standard deviation of the noise added to the image before the first step (Zhang et al. 2019, algorithm 1).
_START = 0.001


class TPGD(PGD):
    """TRADES's PGD: moves the outputs away from the clean outputs (Zhang et al. 2019; the paper's appendix 6.3).

    It maximises KL(softmax f(x) ‖ softmax f(x_adv)), and uses the labels only to see which images it has broken. It
    starts at x + 0.001 n with n normal, because the gradient at x itself is zero.

    Args:
        model, epsilon, steps, step_size, restarts, stop_at_success, gradient, norm, seed, batch_size: see `PGD`.

    Examples:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        >>> images = torch.rand(4, 1, 8, 8)
        >>> biotorch.robustness.TPGD(model, epsilon=0.5, steps=10)(images, model(images).argmax(1)).shape
        torch.Size([4, 1, 8, 8])
    """

    fixed: ClassVar[Mapping[str, str]] = {
        "loss": "its loss is the KL divergence",
        "random_start": "it starts at a random point near the image",
    }
    targeted = False  # its loss leads to no class

    def start(self, attempt: Attempt, index: Tensor) -> Tensor:
        images = attempt.images[index]
        noise = torch.randn(images.shape, dtype=images.dtype, generator=attempt.generator).to(images.device)
        return project(images + _START * noise, images, self.epsilon, self.norm)

    def objective(self, attempt: Attempt, index: Tensor) -> Loss:
        return divergence(attempt.clean_outputs[index])
