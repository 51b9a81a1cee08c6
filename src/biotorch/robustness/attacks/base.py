"""Base class of all attacks. It owns bounds, epsilon, batches, success, queries and seeds; subclasses only perturb."""

from __future__ import annotations

import dataclasses
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Literal, TypedDict

import torch
from torch import Tensor, nn

from biotorch import _seeding
from biotorch.errors import BoundsError
from biotorch.layers import FeedbackLayer
from biotorch.robustness.attacks import inputs
from biotorch.robustness.attacks.attempt import Attempt, Gradient, unseen
from biotorch.robustness.attacks.inputs import ROUNDING, Named, TargetName, arguments, require
from biotorch.robustness.attacks.norms import Norm, size

#: Part that an attack plays in a study. `noise` looks at no network; `transfer` at another one; a `black box` at
#: outputs alone; a `white box` at gradients, in a `single step` or in `steps`; `no radius` has no epsilon.
Role = Literal["noise", "transfer", "black box", "white box", "single step", "steps", "no radius"]


class Common(TypedDict, total=False):
    """Keyword arguments that every attack takes, see `Attack`."""

    norm: Norm
    seed: int
    batch_size: int
    abstain: int | None


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Result of an attack on n images.

    Attributes:
        adversarial: (n, ...) in [0, 1], each no further from its image than epsilon.
        clean: (n,) bool, whether the image itself is classified as labelled.
        robust: (n,) bool, whether the image withstands: it is classified as labelled, and its adversarial example is
            classified as labelled or rejected. With `targets`: neither of them is classified as the target.
        queries: (n,) int64, forward passes that the attack took, without the passes that judge its result.
        blind: (n,) bool, whether a gradient of the attack was zero everywhere or not finite.
        losses: (steps, n), NaN for images that a step left out; None for an attack without steps.

    Examples:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        >>> images = torch.rand(4, 1, 8, 8)
        >>> outcome = biotorch.robustness.FGSM(model, 0.5).run(images, model(images).argmax(1))
        >>> outcome.clean.sum().item(), outcome.robust.sum().item(), outcome.queries
        (4, 0, tensor([1, 1, 1, 1]))
    """

    adversarial: Tensor
    clean: Tensor
    robust: Tensor
    queries: Tensor
    blind: Tensor
    losses: Tensor | None = None


class Attack(Named, ABC):
    """Makes adversarial examples for a network: `adversarial = attack(images, labels)`.

    The network is any `nn.Module` that maps images in [0, 1] to outputs (n, C). If it expects normalised images, attack
    `Normalised(model, mean, std)` instead. The network is attacked in eval mode; afterwards its modes, buffers and
    gradients and the global random state are restored. It sees images in the memory format in which they are given.
    Convolutions on a CPU are up to three times as fast on `images.to(memory_format=torch.channels_last)`. A network in
    half precision gets the images in its own type, and one that returns a single logit (n, 1) or (n,) has the two
    classes 0 and 1.

    Args:
        model: the network, on the device to work on.
        epsilon: radius of the ball, for pixels in [0, 1] (L∞: per pixel value; L2, L1: for the whole image).
        norm: `linf`, `l2` or `l1`.
        seed: seed of all randomness in the attack. Equal seeds and batch sizes give equal results.
        batch_size: number of images attacked at once.
        abstain: index of a reject class, or None. A rejected example is no success for the attacker; a rejected image
            is not classified correctly. See `Detector`.

    Raises:
        ValueError: an argument has an unusable value.
        TypeError: the attack does not take an argument.

    Examples:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        >>> images = torch.rand(4, 1, 8, 8)
        >>> attack = biotorch.robustness.PGD(model, epsilon=0.1, steps=5)
        >>> ((attack(images, model(images).argmax(1)) - images).abs() <= 0.1 + 1e-6).all().item()
        True
    """

    #: Norms that the attack supports.
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2", "l1")
    #: Whether the attack uses gradients of the network.
    white_box: ClassVar[bool] = False
    #: Part that the attack plays in a study.
    role: ClassVar[Role] = "black box"
    #: Whether the attack can follow targets, that is, moves by `Attempt.loss` and `Attempt.withstand` alone.
    targeted: ClassVar[bool] = False
    #: Rises when equal settings come to give other examples: studies do not go on with results of an earlier edition.
    edition: ClassVar[int] = 1
    #: Whether images that are already misclassified, or classified as their target, stay unperturbed.
    skips_solved: bool = True
    #: Whether a call warns of images at which the attack met a useless gradient. A study has a check for them instead.
    warns: bool = True

    def __init__(
        self,
        model: nn.Module,
        epsilon: float = 8 / 255,
        *,
        norm: Norm = "linf",
        seed: int = 0,
        batch_size: int = 250,
        abstain: int | None = None,
    ) -> None:
        inputs.require_network(model)
        hint = "; FewPixel (few_pixel) bounds the number of changed pixels" if str(norm) == "l0" else ""
        require(norm in self.norms, f"norm: {type(self).__name__} supports {', '.join(self.norms)}, not {norm!r}{hint}")
        require(inputs.is_number(epsilon) and epsilon >= 0, f"epsilon: a number from 0 on is needed, not {epsilon!r}")
        require(
            norm != "linf" or epsilon <= 1,
            f"epsilon: {epsilon:g} is more than any pixel in [0, 1] can change; write a fraction such as 8/255",
        )
        require(
            abstain is None or (inputs.is_number(abstain) and abstain >= 0 and abstain == int(abstain)),
            f"abstain: the index of a class from 0 on is needed, or None, not {abstain!r}",
        )
        self.model, self.epsilon, self.norm = model, float(epsilon), norm
        self.abstain = None if abstain is None else int(abstain)
        self.seed, (self.batch_size,) = seed, inputs.require_counts(batch_size=batch_size)

    @abstractmethod
    def perturb(self, attempt: Attempt, index: Tensor) -> Tensor:
        """Adversarial examples (m, ...) for the images `index` (m,) of an attempt.

        For an image that the attack cannot break, any point of the ball will do.
        """

    @property
    @abstractmethod
    def passes(self) -> tuple[int, int]:
        """Largest number of forward and of backward passes per image."""

    def __call__(self, images: Any, labels: Any = None, *, targets: Any = None) -> Tensor:
        """Adversarial examples (n, ...) for images (n, ...) in [0, 1] with labels (n,); see `run`.

        Raises:
            ValueError, BoundsError, RuntimeError: under the same conditions as `run`.
        """
        images, labels, targets = self._read(images, labels, targets)
        found, blind = [], 0
        for attempt, adversarial in self._batches(images, labels, targets, judged=False):
            found.append(adversarial)
            if self.warns and bool(attempt.blind.any()):
                with unseen(self.model):
                    suspects = (attempt.blind.to(adversarial.device) & attempt.unbroken).nonzero()[:, 0]
                    blind += int(attempt.right(adversarial[suspects], suspects).sum()) if len(suspects) else 0
        self._warn(blind)
        return torch.cat(found).to(images.device)

    def run(
        self,
        images: Any,
        labels: Any = None,
        on_batch: Callable[[int], None] | None = None,
        *,
        targets: Any = None,
    ) -> Outcome:
        """Attack, and judge the result.

        Args:
            images: (n, ...) in [0, 1], a tensor or an array of floats; or an iterable of batches (images, labels), such
                as a DataLoader.
            labels: (n,) classes, a tensor, an array or a list of whole numbers; None with an iterable of batches.
            on_batch: called after every batch with the number of finished images.
            targets: (n,) classes that the images shall be classified as; or the choice of a wrong class: `random`,
                `least_likely` (lowest output at the image) or `next` (highest). Default: any wrong class is a success.

        Raises:
            ValueError: images, labels or targets have another shape, type or range, or the attack follows no targets.
            BoundsError: an adversarial example lies outside [0, 1] or further away than epsilon.
            RuntimeError: called inside `torch.inference_mode()`.

        Warns:
            UserWarning: images withstand at which the attack met a zero or non-finite gradient.
        """
        images, labels, targets = self._read(images, labels, targets)
        parts = []
        for attempt, adversarial in self._batches(images, labels, targets, judged=True):
            queries = attempt.queries.clone()
            with unseen(self.model):
                right = attempt.right(adversarial, attempt.everyone)
            losses = torch.stack(attempt.losses) if attempt.losses else None
            clean, robust = attempt.clean.cpu(), (attempt.unbroken & right).cpu()
            parts.append(Outcome(adversarial.to(images.device), clean, robust, queries, attempt.blind, losses))
            if on_batch is not None:
                on_batch(sum(len(part.clean) for part in parts))
        outcome = _joined(parts)
        self._warn(int((outcome.blind & outcome.robust).sum()))
        return outcome

    def _warn(self, blind: int) -> None:
        if self.warns and blind:
            warnings.warn(
                f"{type(self).__name__} met a zero or non-finite gradient at {blind} images that withstand it, which "
                "says nothing about the network. Likely causes: detach(), torch.no_grad(), argmax or rounding in its "
                "forward pass; a saturated softmax (try loss='margin'); a rule that sends no feedback to the images",
                UserWarning,
                stacklevel=3,
            )

    def _read(self, images: Any, labels: Any, targets: Any) -> tuple[Tensor, Tensor, Tensor | TargetName | None]:
        images, labels = inputs.read(images, labels)
        rejected = self.abstain is not None and bool((labels == self.abstain).any())
        require(not rejected, f"labels: {self.abstain} is the reject class (abstain)")
        if targets is None:
            return images, labels, None
        following = "FGSM, PGD, EOTPGD, AutoPGD, Square, FewPixel and Transfer do"
        require(self.targeted, f"targets: {type(self).__name__} follows none; {following}")
        return images, labels, inputs.read_targets(targets, labels, self.abstain)

    def _batches(
        self, images: Tensor, labels: Tensor, targets: Tensor | TargetName | None, judged: bool
    ) -> Iterator[tuple[Attempt, Tensor]]:
        """Each batch with its adversarial examples, on the device of the network."""
        device = inputs.device_of(self.model, images)
        for start in range(0, len(images), self.batch_size):
            part = slice(start, start + self.batch_size)
            generator = _seeding.generator(_seeding.derive(self.seed, "attack", start))
            wanted = targets[part].to(device) if isinstance(targets, Tensor) else targets
            with unseen(self.model):
                batch, truth = images[part].to(device), labels[part].to(device)
                attempt = Attempt(self.model, batch, truth, generator, judged, self.abstain, wanted)
                index = attempt.everyone[attempt.unbroken] if self.skips_solved else attempt.everyone
                adversarial = attempt.images.clone()
                if len(index) and self.epsilon > 0:
                    adversarial[index] = self.perturb(attempt, index).detach().to(adversarial)
            self._require_bounds(adversarial, attempt.images, start)
            yield attempt, adversarial

    def _require_bounds(self, adversarial: Tensor, images: Tensor, start: int) -> None:
        inside = bool(((adversarial >= 0) & (adversarial <= 1)).all())  # false if a value is NaN
        farthest = float(self.distance(adversarial, images).max())
        if not inside or not farthest <= self.epsilon * (1 + ROUNDING) + ROUNDING:
            raise BoundsError(
                f"{self!r} has left its bounds in the batch that starts at image {start}: values range from "
                f"{float(adversarial.min()):.6g} to {float(adversarial.max()):.6g}, and the "
                f"farthest perturbation is {farthest:.6g}"
            )

    def distance(self, adversarial: Tensor, images: Tensor) -> Tensor:
        """Distance of each adversarial example from its image, in the norm of the attack: (n,)."""
        return size(adversarial - images, self.norm)

    @property
    def settings(self) -> dict[str, Any]:
        """All arguments except the network, by name."""
        return {name: getattr(self, name) for name in arguments(type(self))}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.settings.items())})"


def gradients_of(model: nn.Module) -> tuple[Gradient, ...]:
    """Gradients of a network that attacks can follow: its feedback gradient, if that differs, and its true gradient."""
    layers = [module for module in model.modules() if isinstance(module, FeedbackLayer)]
    differ = any(layer.rule is not None and layer.rule.name != "backpropagation" for layer in layers)
    return ("feedback", "true") if differ else ("true",)


def _joined(parts: list[Outcome]) -> Outcome:
    losses = [part.losses for part in parts if part.losses is not None]
    steps = max((len(each) for each in losses), default=0)
    padded = [
        torch.full((steps, len(part.clean)), torch.nan)
        if part.losses is None
        else torch.cat([part.losses, torch.full((steps - len(part.losses), len(part.clean)), torch.nan)])
        for part in parts
    ]
    names = ("adversarial", "clean", "robust", "queries", "blind")
    whole = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
    return Outcome(**whole, losses=torch.cat(padded, dim=1) if losses else None)
