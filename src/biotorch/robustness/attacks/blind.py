"""Attacks that never query the network: random signs, and transfer from another network."""

from __future__ import annotations

from typing import ClassVar, Unpack

import torch
from torch import Tensor, nn

from biotorch.models.outputs import logits_of
from biotorch.robustness.attacks.attempt import Attempt, Gradient, unseen
from biotorch.robustness.attacks.base import Attack, Common, Role
from biotorch.robustness.attacks.gradient import PGD
from biotorch.robustness.attacks.inputs import floating_type
from biotorch.robustness.attacks.norms import project, steepest


class RandomSigns(Attack):
    """Random signs s added to the image: x + epsilon s in L∞, x + epsilon s / |s| in L2; clamped to [0, 1].

    This is the baseline: an attack that does no better has learned nothing from the network. Every image is perturbed
    once, including misclassified ones.

    Examples:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        >>> images = torch.rand(4, 1, 8, 8)
        >>> attack = biotorch.robustness.RandomSigns(model, epsilon=0.01)
        >>> attack.run(images, model(images).argmax(1)).robust.sum().item()
        4
    """

    role: ClassVar[Role] = "noise"
    targeted = True
    skips_solved = False

    def perturb(self, attempt: Attempt, index: Tensor) -> Tensor:
        images = attempt.images[index]
        coins = torch.randint(0, 2, images.shape, generator=attempt.generator, dtype=torch.int8).to(images.device)
        signs = steepest((2 * coins - 1).to(images.dtype), self.norm)
        return project(images + self.epsilon * signs, images, self.epsilon, self.norm)

    @property
    def passes(self) -> tuple[int, int]:
        return 1, 0


class Transfer(Attack):
    """Makes adversarial examples on one network and tries them on another (Papernot et al. 2016).

    Projected gradient descent (PGD) runs all of its steps on `source`, which an attacker may have trained. It never
    queries `model`.

    Args:
        model: network to be fooled.
        epsilon, norm, seed, batch_size: see `Attack`.
        source: network on which the examples are made; it takes the same images.
        steps: number of PGD steps.
        gradient: gradient of `source` that PGD follows, `true` or `feedback`.

    If `source` has as many outputs as `model`, the reject class `abstain` is one of them and its examples evade it.

    Examples:
        >>> model, source = (nn.Sequential(nn.Flatten(), nn.Linear(64, 10)) for _ in range(2))
        >>> images = torch.rand(4, 1, 8, 8)
        >>> attack = biotorch.robustness.Transfer(model, epsilon=0.1, source=source, steps=5)
        >>> attack.run(images, model(images).argmax(1)).adversarial.shape
        torch.Size([4, 1, 8, 8])
    """

    role: ClassVar[Role] = "transfer"
    targeted = True
    edition = PGD.edition

    def __init__(
        self,
        model: nn.Module,
        epsilon: float = 8 / 255,
        *,
        source: nn.Module,
        steps: int = 40,
        gradient: Gradient = "true",
        **common: Unpack[Common],
    ) -> None:
        super().__init__(model, epsilon, **common)
        self.source, self.steps, self.gradient = source, steps, gradient
        self._attack()

    def _attack(self, seed: int = 0, abstain: int | None = None) -> PGD:
        attack = PGD(
            self.source,
            self.epsilon,
            steps=self.steps,
            gradient=self.gradient,
            stop_at_success=False,
            norm=self.norm,
            seed=seed,
            batch_size=self.batch_size,
            abstain=abstain,
        )
        attack.warns = self.warns
        return attack

    def perturb(self, attempt: Attempt, index: Tensor) -> Tensor:
        seed = int(torch.randint(2**31, (), generator=attempt.generator))
        images, classes = attempt.images[index], attempt.classes[index]
        targets = None if attempt.targets is None else attempt.targets[index]
        abstain = self.abstain
        if abstain is not None and not self._rejects(images[:1], attempt):
            classes = classes - (classes > abstain).long()
            targets = None if targets is None else targets - (targets > abstain).long()
            abstain = None
        return self._attack(seed, abstain)(images, classes, targets=targets)

    def _rejects(self, image: Tensor, attempt: Attempt) -> bool:
        """Whether the source has as many outputs as the network, and so the reject class, too."""
        with unseen(self.source), torch.no_grad():
            outputs = logits_of(self.source(image.to(floating_type(self.source) or image.dtype, copy=True)))
        return outputs.shape[1] == attempt.width

    @property
    def passes(self) -> tuple[int, int]:
        return self._attack().passes
