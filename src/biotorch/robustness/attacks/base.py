"""Base class of all attacks. It owns bounds, epsilon, batches, success, queries and seeds; subclasses only perturb."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Literal, TypedDict

import torch
from torch import Tensor, nn

from biotorch import _seeding
from biotorch.errors import BoundsError
from biotorch.layers.networks import isolated
from biotorch.robustness.attacks.attempt import Attempt
from biotorch.robustness.attacks.norms import Norm, size

#: Tolerated rounding error of a perturbation, some units in the last place of a float32 pixel.
ROUNDING = 1e-6


#: Part that an attack plays in a study. `noise` looks at no network; `transfer` at another one; a `black box` at
#: outputs alone; a `white box` at gradients, in a `single step` or in `steps`; `no radius` has no epsilon.
Role = Literal["noise", "transfer", "black box", "white box", "single step", "steps", "no radius"]


class Common(TypedDict, total=False):
    """Keyword arguments that every attack takes, see `Attack`."""

    norm: Norm
    seed: int
    batch_size: int


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Result of an attack on n images.

    Attributes:
        adversarial: (n, ...) in [0, 1], each no further from its image than epsilon.
        clean: (n,) bool, whether the image itself is classified as labelled.
        robust: (n,) bool, whether both the image and its adversarial example are classified as labelled.
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


class Attack(ABC):
    """Makes adversarial examples for a network: `adversarial = attack(images, labels)`.

    The network is any `nn.Module` that maps images in [0, 1] to outputs (n, C). If it expects normalised images, attack
    `Normalised(model, mean, std)` instead. The network is attacked in eval mode; afterwards its modes, buffers and
    gradients and the global random state are restored. It sees images in the memory format in which they are given.
    Convolutions on a CPU are up to three times as fast on `images.to(memory_format=torch.channels_last)`.

    Args:
        model: the network, on the device to work on.
        epsilon: radius of the ball, for pixels in [0, 1] (L∞: per pixel value; L2: for the whole image).
        norm: `linf` or `l2`.
        seed: seed of all randomness in the attack. Equal seeds and batch sizes give equal results.
        batch_size: number of images attacked at once.

    Raises:
        ValueError: an argument has an unusable value.

    Examples:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        >>> images = torch.rand(4, 1, 8, 8)
        >>> attack = biotorch.robustness.PGD(model, epsilon=0.1, steps=5)
        >>> ((attack(images, model(images).argmax(1)) - images).abs() <= 0.1 + 1e-6).all().item()
        True
    """

    #: Norms that the attack supports.
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")
    #: Whether the attack uses gradients of the network.
    white_box: ClassVar[bool] = False
    #: Part that the attack plays in a study.
    role: ClassVar[Role] = "black box"
    #: Arguments of base classes that the attack does not take, each with the reason.
    fixed: ClassVar[Mapping[str, str]] = {}
    #: Rises when equal settings come to give other examples: studies do not go on with results of an earlier edition.
    edition: ClassVar[int] = 1
    #: Whether images that are already misclassified stay unperturbed.
    skips_solved: bool = True

    def __init__(
        self,
        model: nn.Module,
        epsilon: float = 8 / 255,
        *,
        norm: Norm = "linf",
        seed: int = 0,
        batch_size: int = 250,
    ) -> None:
        require(norm in self.norms, f"norm: {type(self).__name__} supports {', '.join(self.norms)}, not {norm!r}")
        require(is_number(epsilon) and epsilon >= 0, f"epsilon: a number from 0 on is needed, not {epsilon!r}")
        require(_is_count(batch_size), f"batch_size: a whole number from 1 on is needed, not {batch_size!r}")
        self.model, self.epsilon, self.norm = model, float(epsilon), norm
        self.seed, self.batch_size = seed, batch_size

    @abstractmethod
    def perturb(self, attempt: Attempt, index: Tensor) -> Tensor:
        """Adversarial examples (m, ...) for the images `index` (m,) of an attempt.

        For an image that the attack cannot break, any point of the ball will do.
        """

    @property
    @abstractmethod
    def passes(self) -> tuple[int, int]:
        """Largest number of forward and of backward passes per image."""

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """Adversarial examples (n, ...) for images (n, ...) in [0, 1] with labels (n,) int64.

        Raises:
            ValueError: images or labels have another shape, type or range.
            BoundsError: an adversarial example lies outside [0, 1] or further away than epsilon.
        """
        batches = self._batches(images, labels, judged=False)
        return torch.cat([adversarial for _, adversarial in batches]).to(images.device)

    def run(self, images: Tensor, labels: Tensor, on_batch: Callable[[int], None] | None = None) -> Outcome:
        """Attack, and judge the result.

        Args:
            images: (n, ...) in [0, 1], float32 or float64.
            labels: (n,) int64.
            on_batch: called after every batch with the number of finished images.

        Raises:
            ValueError, BoundsError: under the same conditions as `__call__`.
        """
        parts = []
        for attempt, adversarial in self._batches(images, labels, judged=True):
            queries = attempt.queries.clone()
            with unseen(self.model):
                right = attempt.right(adversarial, torch.arange(len(adversarial), device=adversarial.device))
            losses = torch.stack(attempt.losses) if attempt.losses else None
            clean, robust = attempt.clean.cpu(), (attempt.clean & right).cpu()
            parts.append(Outcome(adversarial.to(images.device), clean, robust, queries, attempt.blind, losses))
            if on_batch is not None:
                on_batch(sum(len(part.clean) for part in parts))
        return _joined(parts)

    def _batches(self, images: Tensor, labels: Tensor, judged: bool) -> Iterator[tuple[Attempt, Tensor]]:
        """Each batch with its adversarial examples, on the device of the network."""
        require_images(images, labels)
        device = _device(self.model, images)
        for start in range(0, len(images), self.batch_size):
            part = slice(start, start + self.batch_size)
            generator = _seeding.generator(_seeding.derive(self.seed, "attack", start))
            with unseen(self.model):
                batch, truth = images[part].detach().to(device), labels[part].to(device)
                attempt = Attempt(self.model, batch, truth, generator, judged)
                index = torch.arange(len(attempt.labels), device=device)
                if self.skips_solved:
                    index = index[attempt.clean]
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


def require(condition: bool, message: str) -> None:
    """Raise ValueError with `message` unless `condition` holds."""
    if not condition:
        raise ValueError(message)


def require_counts(**counts: object) -> None:
    """Raise ValueError unless every value is a whole number from 1 on."""
    for name, value in counts.items():
        require(_is_count(value), f"{name}: a whole number from 1 on is needed, not {value!r}")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def arguments(kind: type[Attack]) -> dict[str, Any]:
    """Defaults of all arguments of an attack except the network, by name; those of its base classes are included."""
    defaults: dict[str, Any] = {}
    for base in kind.__mro__:
        if "__init__" in vars(base) and base is not object:
            parameters = list(inspect.signature(base.__init__).parameters.values())[2:]  # type: ignore[misc]
            for each in parameters:
                if each.kind is not each.VAR_KEYWORD:
                    defaults.setdefault(each.name, each.default)
    return {name: default for name, default in defaults.items() if name not in kind.fixed}


def require_images(images: Tensor, labels: Tensor) -> None:
    """Raise ValueError unless images are (n, ...) in [0, 1], and labels (n,) int64 from 0 on."""
    require(images.dim() >= 2 and len(images) > 0, f"images: (n, ...) with n > 0 is needed, not {tuple(images.shape)}")
    require(images.dtype in (torch.float32, torch.float64), f"images: float32 or float64 is needed, not {images.dtype}")
    require(
        labels.shape == images.shape[:1] and labels.dtype == torch.int64,
        f"labels: ({len(images)},) int64 is needed, not {tuple(labels.shape)} {labels.dtype}",
    )
    require(int(labels.min()) >= 0, f"labels: classes from 0 on are needed, not {int(labels.min())}")
    low, high = float(images.min()), float(images.max())
    require(
        low >= 0 and high <= 1,  # false if a value is NaN
        f"images: values from 0 to 1 are needed, not from {low:.4g} to {high:.4g}. If the network expects normalised "
        "images, attack biotorch.robustness.Normalised(model, mean, std) with images that are not normalised",
    )


def _device(model: nn.Module, images: Tensor) -> torch.device:
    tensors = (*model.parameters(), *model.buffers())
    return tensors[0].device if tensors else images.device


@contextlib.contextmanager
def unseen(model: nn.Module) -> Iterator[None]:
    """Context that puts the network into eval mode, and restores its modes and its state afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with isolated(model):
            yield
    finally:
        for module, training in modes.items():
            module.training = training


def _joined(parts: list[Outcome]) -> Outcome:
    losses = [part.losses for part in parts if part.losses is not None]
    steps = max((len(each) for each in losses), default=0)
    padded = [
        torch.full((steps, len(part.clean)), torch.nan)
        if part.losses is None
        else torch.cat([part.losses, torch.full((steps - len(part.losses), len(part.clean)), torch.nan)])
        for part in parts
    ]
    return Outcome(
        torch.cat([part.adversarial for part in parts]),
        torch.cat([part.clean for part in parts]),
        torch.cat([part.robust for part in parts]),
        torch.cat([part.queries for part in parts]),
        torch.cat([part.blind for part in parts]),
        torch.cat(padded, dim=1) if losses else None,
    )
