"""What attacks of the library pyautoattack need to stand behind our interface.

The library's attacks run on a set of images, decide which of them to go on with, seed the global generator, and hand
back images. Here we decide, by `withstand`, and the library is left with single runs on images that are all still
unbroken: hence every forward pass is known to be one of each of these, and is counted. The network is shown to it as
a `Shown`. Of the library's defects that leaves

* parameters, which FAB would fill with gradients: untouched, see `_Network`;
* `sys.settrace(None)` after its check for dynamic defences, whose findings stay for all later networks: `dynamic`;
* non-finite gradients and images, which become adversarial examples: `Shown.see`, `withstand`;
* images cast to float32: the network is shown its own type, and results are projected in it;
* a device generator that is seeded, too: `seed` touches that of the CPU alone, where the library draws.


The Square attack."""

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

from biotorch.robustness.attacks.attempt import Attempt, Gradient, classified
from biotorch.robustness.attacks.base import Attack, Common, is_number, require, require_counts
from biotorch.robustness.attacks.norms import Norm, project

#: The names that the library has for the norms.
NORMS: dict[Norm, str] = {"linf": "Linf", "l2": "L2"}

#: One run of an attack: images (m, ...) in float32, labels (m,) and their index (m,) to adversarial images (m, ...).
Run = Callable[[Tensor, Tensor, Tensor], Tensor]


class Shown:
    """The network of an attempt as the library sees it: a function from float32 images to float32 outputs.

    Every call counts as one forward pass of each image of `index`, whatever it is called with. (Where a network is
    noisy, FAB leaves out images that a second look misclassifies; they are counted nevertheless.)

    Args:
        attempt: whose network it is, and who counts.
        gradient: which one the library gets.
        index: (m,) images that the next calls are about; empty: calls are not counted.
    """

    def __init__(self, attempt: Attempt, gradient: Gradient, index: Tensor) -> None:
        self.attempt, self.gradient, self.index = attempt, gradient, index

    def __call__(self, points: Tensor) -> Tensor:
        if not len(points):
            return points.new_zeros(0, self.attempt.clean_outputs.shape[1])
        if torch.is_grad_enabled() and points.requires_grad:
            outputs: Tensor = _Network.apply(points, self)
            return outputs
        with torch.no_grad():
            return self.outputs(points)

    def outputs(self, points: Tensor) -> Tensor:
        """Outputs (m, C) in float32, counted."""
        self.attempt.queries[self.index.cpu()] += 1
        return self.attempt.forward(points.to(self.attempt.images.dtype)).float().clone()  # the library writes into it

    def see(self, gradient: Tensor) -> Tensor:
        """The gradient, zero where it is not finite; images without one are `blind`."""
        flat = gradient.flatten(1)
        useless = ~flat.isfinite().all(1) | (flat == 0).all(1)
        if len(useless) == len(self.index):
            self.attempt.blind[self.index[useless].cpu()] = True
        return gradient.nan_to_num(0, 0, 0)


class _Network(torch.autograd.Function):
    """The network as one step of the library's graph: a backward through it ends at the image.

    So parameters get no gradient, and a network that detaches its input has a gradient, zero.
    """

    @staticmethod
    def forward(ctx: Any, points: Tensor, shown: Shown) -> Tensor:
        ctx.shown, ctx.points = shown, points.detach().requires_grad_()
        with torch.enable_grad(), shown.attempt.route(shown.index, shown.gradient):
            outputs = shown.outputs(ctx.points)
        ctx.outputs = outputs
        return outputs.detach()

    @staticmethod
    def backward(ctx: Any, errors: Tensor) -> tuple[Tensor, None]:
        gradient = torch.zeros_like(ctx.points)
        if ctx.outputs.requires_grad:
            (gradient,) = torch.autograd.grad(
                ctx.outputs, ctx.points, errors, retain_graph=True, allow_unused=True, materialize_grads=True
            )
        return ctx.shown.see(gradient.detach()), None


def withstand(
    attempt: Attempt, index: Tensor, runs: Iterable[Run], epsilon: float, norm: Norm
) -> tuple[Tensor, Tensor]:
    """Attack the images `index` (m,) by one run after the other, each on those that the runs before have not broken.

    The passes that judge a run are not counted: the library knows what it has broken.

    Returns:
        Points (m, ...) in the ball: what has broken an image, or else what the last run has left; and whether each is
        still classified as its label says (m,).
    """
    images, labels = attempt.images[index], attempt.labels[index]
    points, right = images.clone(), torch.ones(len(index), dtype=torch.bool, device=images.device)
    for run in runs:
        own = images[right]
        found = run(own.float().contiguous(), labels[right], index[right]).detach().to(own)
        points[right] = project(torch.where(found.isfinite(), found, own), own, epsilon, norm)
        with torch.no_grad():
            outputs = attempt.forward(points[right])
        right[right.clone()] = classified(outputs, labels[right])
        if not bool(right.any()):
            break
    return points, right


def seed(attempt: Attempt) -> int:
    """A seed for the library, drawn from the attempt."""
    return int(torch.randint(2**31, (), generator=attempt.generator))


def start(number: int) -> None:
    """Seed the generator that the library draws from, the global one of the CPU: the base class puts it back."""
    torch.default_generator.manual_seed(number)


class Warner:
    """A logger for the library, whose warnings become Python's, each once (numbers in them make no difference)."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def warning(self, message: str) -> None:
        """Warn, unless that was said before."""
        message = re.sub(r" See \S+ for details\.", "", message)
        if (key := re.sub(r"[\d.]+", "", message)) not in self._told:
            self._told.add(key)
            warnings.warn(f"pyautoattack: {message}", UserWarning, stacklevel=2)


def dynamic(shown: Shown, points: Tensor, logger: Warner) -> None:
    """The library's check for networks that differentiate or train in their forward pass."""
    trace = sys.gettrace()
    for name in checks.funcs:
        checks.funcs[name] = 0
    try:
        checks.check_dynamic(shown, points, logger=logger)
    finally:
        sys.settrace(trace)


def require_tiles(images: Tensor, norm: Norm) -> None:
    """Raise ValueError for images that the library's Square attack cannot tile."""
    require(images.dim() == 4, f"images: Square needs (n, C, H, W), not {tuple(images.shape)}")
    height, width = images.shape[2:]
    # In L2 it starts from tiles of H // 5 pixels, and fails where one of them sticks out.
    side = height // 5
    first = (height - 5 * side) // 2
    fits = side == 1 or (side > 1 and all(first + each // side * side <= each for each in (height, width)))
    require(
        norm == "linf" or fits,
        f"images: the Square attack of pyautoattack fails in l2 at {height} x {width} pixels; it works at "
        "28 x 28, 32 x 32, 64 x 64 and 224 x 224, or in linf",
    )


class Square(Attack):
    """Random search with square patches, by outputs alone (Andriushchenko et al. 2020; the paper's appendix 6.3).

    Run by pyautoattack, one restart at a time. Its schedule of patch sizes is that of 10,000 queries, as in
    AutoAttack, whatever the budget.

    Args:
        model, epsilon, norm, seed, batch_size: as of `Attack`. Images are (n, C, H, W).
        queries: forward passes per image and restart, at most.
        p_init: share of the pixels that the first patches cover.
        loss: `margin` or `ce`.
        restarts: independent starts; an image is broken if one of them breaks it.
    """

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
        require_counts(queries=queries, restarts=restarts)
        require(is_number(p_init) and 0 < p_init <= 1, f"p_init: a share of the pixels is needed, not {p_init!r}")
        require(loss in ("margin", "ce"), f"loss: 'margin' or 'ce' is needed, not {loss!r}")
        self.queries, self.p_init, self.loss, self.restarts = queries, p_init, loss, restarts

    def perturb(self, attempt: Attempt, index: Tensor) -> Tensor:
        require_tiles(attempt.images, self.norm)
        shown = Shown(attempt, "true", index[:0])
        search = SquareAttack(
            shown,
            norm=NORMS[self.norm],
            n_queries=self.queries - 1,  # beside that of the start
            eps=self.epsilon,
            p_init=self.p_init,
            loss=self.loss,
            resc_schedule=False,
        )
        start(seed(attempt))
        runs = [run(shown, search)] * self.restarts
        return withstand(attempt, index, runs, self.epsilon, self.norm)[0]

    @property
    def passes(self) -> tuple[int, int]:
        return self.restarts * self.queries, 0


def run(shown: Shown, search: Any) -> Run:
    """One start of the library's search. It looks at fewer and fewer of its images, and counts the queries itself."""

    def start(images: Tensor, labels: Tensor, index: Tensor) -> Tensor:
        shown.index = index[:0]
        search.init_hyperparam(images)
        queries, points = search.attack_single_run(images, labels)
        shown.attempt.queries[index.cpu()] += queries.cpu().to(torch.int64)
        return points  # type: ignore[no-any-return]

    return start
