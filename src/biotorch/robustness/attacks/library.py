"""Adapter between our attack interface and the library pyautoattack, and the Square attack.

The library's attacks choose which images to go on with, seed the global generator, and return images. Here `withstand`
chooses the images. The library performs only single runs on images that are all unbroken, so each forward pass counts
as one query of each of them. The library sees the network as a `Shown`. These defects of the library are worked around:

* FAB would compute gradients of parameters, and store them: a backward pass through `_Network` ends at the image.
* The check for dynamic defences calls `sys.settrace(None)`, and its findings stay for later networks: see `dynamic`.
* Non-finite gradients and images become adversarial examples: `Shown.see` and `withstand` replace them.
* Images are cast to float32: `Shown` casts them back, and results are projected in the network's own type.
* The device's generator would be seeded too: `start` seeds only the CPU's, from which the library draws.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Callable, Iterable
from typing import Any, Literal, Unpack

import torch
from pyautoattack import checks
from pyautoattack.square import SquareAttack
from torch import Tensor, nn

from biotorch.robustness.attacks.attempt import Attempt, Gradient, useless
from biotorch.robustness.attacks.base import Attack, Common
from biotorch.robustness.attacks.inputs import is_number, require, require_counts
from biotorch.robustness.attacks.norms import Norm, project

#: Names of the norms in the library.
NORMS: dict[Norm, str] = {"linf": "Linf", "l2": "L2", "l1": "L1"}

#: One run of an attack: images (m, ...) in float32, labels (m,) and their index (m,) to adversarial images (m, ...).
Run = Callable[[Tensor, Tensor, Tensor], Tensor]


class Shown:
    """Network of an attempt as the library sees it: a function from float32 images to float32 outputs.

    Every call counts as one forward pass of each image of `index`, whatever points it gets. (In a noisy network FAB
    leaves out images that a second pass misclassifies; they are counted nevertheless.)

    Args:
        attempt: holds the network and counts the queries.
        gradient: gradient that the library gets, `true` or `feedback`.
        index: (m,), images whose queries the next calls count; if empty, calls are not counted.
        again: whether a pass is differentiated several times, as untargeted FAB does, once per class.

    Attributes:
        reached: (m, ...), the last point of each image that the network has classified as its target, NaN for images
            without one. A search with targets sets it to NaN, because the library does not look for such points.
    """

    def __init__(self, attempt: Attempt, gradient: Gradient, index: Tensor, again: bool = False) -> None:
        self.attempt, self.gradient, self.index, self.again = attempt, gradient, index, again
        self.reached: Tensor | None = None
        self._flat: list[Tensor] = []  # of each backward pass since the last forward pass with a graph

    def __call__(self, points: Tensor) -> Tensor:
        if not len(points):
            return points.new_zeros(0, self.attempt.clean_outputs.shape[1])
        if torch.is_grad_enabled() and points.requires_grad:
            self._flat.clear()
            outputs: Tensor = _Network.apply(points, self)
            return outputs
        with torch.no_grad():
            return self.outputs(points)

    def outputs(self, points: Tensor) -> Tensor:
        """Outputs (m, C) in float32, counted."""
        self.attempt.queries[self.index.cpu()] += 1
        own = self.index if len(points) == len(self.index) else None
        found = self.attempt.forward(points.to(self.attempt.images.dtype), own)
        if self.reached is not None:
            broken = ~self.attempt.withstand(found, self.index)
            self.reached[broken] = points[broken].detach()
        return found.float().clone()  # the library writes into it

    def see(self, gradient: Tensor, classes: int) -> Tensor:
        """Replace non-finite values of the gradient by zero, and mark images without a usable one as `blind`.

        Where a pass is differentiated once per class, a zero gradient of one class (as of the constant one beside a
        single logit) says nothing; that of all does.
        """
        wild, flat = useless(gradient)
        if self.again:
            self._flat.append(flat)
            flat = torch.stack(self._flat).all(0) & (len(self._flat) == classes)
        if not bool((wild | flat).any()):
            return gradient
        if len(gradient) == len(self.index):
            self.attempt.blind[self.index[wild | flat].cpu()] = True
        return gradient.nan_to_num(0, 0, 0)


class _Network(torch.autograd.Function):
    """Network as a single node of the library's graph, so that a backward pass ends at the image.

    Parameters thus get no gradient, and a network that detaches its input has a gradient of zero.
    """

    @staticmethod
    def forward(ctx: Any, points: Tensor, shown: Shown) -> Tensor:
        ctx.shown, ctx.points = shown, points.detach().requires_grad_()
        with torch.enable_grad(), shown.attempt.route(shown.attempt.classes[shown.index], shown.gradient):
            outputs = shown.outputs(ctx.points)
        ctx.outputs = outputs
        return outputs.detach()

    @staticmethod
    def backward(ctx: Any, errors: Tensor) -> tuple[Tensor, None]:
        if not ctx.outputs.requires_grad:
            return ctx.shown.see(torch.zeros_like(ctx.points), errors.shape[1]), None
        (gradient,) = torch.autograd.grad(
            ctx.outputs,
            ctx.points,
            errors,
            retain_graph=ctx.shown.again,
            allow_unused=True,
            materialize_grads=True,
        )
        return ctx.shown.see(gradient.detach(), errors.shape[1]), None


def withstand(
    attempt: Attempt, index: Tensor, runs: Iterable[Run], epsilon: float, norm: Norm
) -> tuple[Tensor, Tensor]:
    """Attack the images `index` (m,) by one run after the other, each on the images that no earlier run has broken.

    The passes that judge a run are not counted, because the library itself knows which images it has broken.

    Returns:
        Points (m, ...) in the ball, from the run that broke the image or else from the last run; and whether each
        point still withstands (m,).
    """
    images, labels = attempt.images[index], attempt.labels[index]
    points, right = images.clone(), torch.ones(len(index), dtype=torch.bool, device=images.device)
    for run in runs:
        own = images[right]
        found = run(own.float().contiguous(), labels[right], index[right]).detach().to(own)
        points[right] = project(torch.where(found.isfinite(), found, own), own, epsilon, norm)
        with torch.no_grad():
            outputs = attempt.forward(points[right], index[right])
        right[right.clone()] = attempt.withstand(outputs, index[right])
        if not bool(right.any()):
            break
    return points, right


def seed(attempt: Attempt) -> int:
    """Draw a seed for the library from the attempt's generator."""
    return int(torch.randint(2**31, (), generator=attempt.generator))


def start(number: int) -> None:
    """Seed the CPU's global generator, from which the library draws; the base class restores it afterwards."""
    torch.default_generator.manual_seed(number)


class Warner:
    """Logger that turns the library's log warnings into Python warnings, each once, whatever its numbers.

    Zero gradients are left to the base class, which warns of them after every attack.
    """

    def __init__(self) -> None:
        self._told: set[str] = set()

    def warning(self, message: str) -> None:
        """Warn, unless the same message was given before."""
        message = re.sub(r" See \S+ for details\.", "", message)
        if (key := re.sub(r"[\d.]+", "", message)) not in self._told and "zero gradient" not in key:
            self._told.add(key)
            warnings.warn(f"pyautoattack: {message}", UserWarning, stacklevel=2)


def dynamic(shown: Shown, points: Tensor, logger: Warner) -> None:
    """Run the library's check for networks that differentiate or train in their forward pass.

    It restores the trace function and forgets findings about earlier networks, which the library itself would not.
    """
    trace = sys.gettrace()
    for name in checks.funcs:
        checks.funcs[name] = 0
    try:
        checks.check_dynamic(shown, points, logger=logger)
    finally:
        sys.settrace(trace)


def fits_tiles(images: Tensor, norm: Norm) -> bool:
    """Whether the library's Square attack can tile the images: they have rows and columns, and in L2 enough of them."""
    if images.dim() != 4 or norm == "linf":
        return images.dim() == 4
    height, width = images.shape[2:]
    # In L2 and L1 the library starts from tiles of H // 5 pixels, and fails if one of them exceeds the image.
    side = height // 5
    first = (height - 5 * side) // 2
    return side == 1 or (side > 1 and all(first + each // side * side <= each for each in (height, width)))


def require_tiles(images: Tensor, norm: Norm) -> None:
    """Raise ValueError for images that the library's Square attack cannot tile."""
    require(images.dim() == 4, f"images: Square needs (n, C, H, W), not {tuple(images.shape)}")
    require(
        fits_tiles(images, norm),
        f"images: the Square attack of pyautoattack fails in {norm} at {images.shape[2]} x {images.shape[3]} pixels; "
        "it works at 28 x 28, 32 x 32, 64 x 64 and 224 x 224, or in linf",
    )


class Square(Attack):
    """Random search with square patches that uses only outputs (Andriushchenko et al. 2020; the paper's appendix 6.3).

    The library pyautoattack runs it, one restart at a time. Patches shrink on the authors' schedule for 10,000 queries,
    compressed to the budget. (In `AutoAttack` 5,000 queries follow the first half of that schedule, as its definition
    has it.)

    Args:
        model, epsilon, norm, seed, batch_size: see `Attack`. Images are (n, C, H, W).
        queries: largest number of forward passes per image and restart.
        p_init: share of the pixels that the first patches cover.
        loss: `margin` or `ce`.
        restarts: number of independent starts. An image counts as broken if one of them breaks it.

    Examples:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        >>> images = torch.rand(4, 1, 8, 8)
        >>> attack = biotorch.robustness.Square(model, epsilon=0.5, queries=50)
        >>> attack.run(images, model(images).argmax(1)).queries.max().item() <= 50
        True
    """

    targeted = True
    edition = 2  # in the first, every budget followed the schedule for 10,000 queries

    def __init__(
        self,
        model: nn.Module,
        epsilon: float = 8 / 255,
        *,
        queries: int = 5000,
        p_init: float = 0.8,
        loss: Literal["margin", "ce"] = "margin",
        restarts: int = 1,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(model, epsilon, **common)
        self.queries, self.restarts = require_counts(queries=queries, restarts=restarts)
        require(is_number(p_init) and 0 < p_init <= 1, f"p_init: a share of the pixels is needed, not {p_init!r}")
        require(loss in ("margin", "ce"), f"loss: 'margin' or 'ce' is needed, not {loss!r}")
        self.p_init, self.loss = float(p_init), loss

    def perturb(self, attempt: Attempt, index: Tensor) -> Tensor:
        require_tiles(attempt.images, self.norm)
        shown = Shown(attempt, "true", index[:0])
        search = SquareAttack(
            shown,
            norm=NORMS[self.norm],
            n_queries=self.queries - 1,  # the start takes one query itself
            eps=self.epsilon,
            p_init=self.p_init,
            loss=self.loss,
            resc_schedule=True,
        )
        start(seed(attempt))
        runs = [run(shown, search)] * self.restarts
        return withstand(attempt, index, runs, self.epsilon, self.norm)[0]

    @property
    def passes(self) -> tuple[int, int]:
        return self.restarts * self.queries, 0


def run(shown: Shown, search: Any) -> Run:
    """One start of the library's search, which drops images that it has broken and counts its queries itself."""
    attempt = shown.attempt

    def margin_and_loss(points: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Margin at points of images `index`, 0 or less at success, and the loss that the search lowers."""
        with torch.no_grad():
            outputs = attempt.forward(points.to(attempt.images.dtype), index).float()
        margin = -attempt.loss("margin", index)(outputs, labels := attempt.labels[index])
        return margin, margin if search.loss == "margin" else -attempt.loss(search.loss, index)(outputs, labels)

    def start(images: Tensor, _: Tensor, index: Tensor) -> Tensor:
        search.margin_and_loss = margin_and_loss  # the library's own knows neither targets nor reject class
        search.init_hyperparam(images)
        queries, points = search.attack_single_run(images, index)  # the search hands its labels on, and no more
        attempt.queries[index.cpu()] += queries.cpu().to(torch.int64)
        return points  # type: ignore[no-any-return]

    return start
