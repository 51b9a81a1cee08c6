"""Auto-PGD and AutoAttack."""

from __future__ import annotations

import math
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, Unpack

import pyautoattack
import torch
from pyautoattack import checks
from pyautoattack.autopgd_base import APGDAttack_targeted
from torch import Tensor, nn

from biotorch.robustness.attacks import boundary, library
from biotorch.robustness.attacks.attempt import Attempt
from biotorch.robustness.attacks.gradient import WhiteBox, WhiteBoxArguments
from biotorch.robustness.attacks.inputs import require, require_counts
from biotorch.robustness.attacks.norms import Norm


class AutoPGD(WhiteBox):
    """PGD with momentum that chooses its step sizes itself (Croce and Hein 2020, algorithm 1).

    The first step is 2 epsilon long. At checkpoints where the loss has risen in too few steps, the step is halved, and
    the search goes back to the best point so far. The library pyautoattack runs it, one restart at a time. It makes all
    steps with every image, and starts at a random point on the surface of the ball. In L1 it is l1-APGD (Croce and Hein
    2021). It is not the paper's "APGD", which is `EOTPGD`.

    Args:
        model, epsilon, norm, gradient, seed, batch_size: see `WhiteBox`.
        loss: `ce` or `dlr`; the latter needs at least three classes.
        steps: number of steps.
        restarts: number of independent starts. An image counts as broken if one of them breaks it.
        samples: gradients averaged per step, for noisy networks.

    Examples:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        >>> images = torch.rand(4, 1, 8, 8)
        >>> attack = biotorch.robustness.AutoPGD(model, epsilon=0.5, steps=5)
        >>> attack.run(images, model(images).argmax(1)).robust.sum().item()
        0
    """

    targeted = True

    def __init__(
        self,
        model: nn.Module,
        epsilon: float = 8 / 255,
        *,
        steps: int = 100,
        restarts: int = 1,
        samples: int = 1,
        **white_box: Unpack[WhiteBoxArguments],
    ) -> None:
        super().__init__(model, epsilon, **white_box)
        require(self.loss in ("ce", "dlr"), f"loss: AutoPGD supports ce and dlr, not {self.loss!r}")
        self.steps, self.restarts, self.samples = require_counts(steps=steps, restarts=restarts, samples=samples)
        self._logger = library.Warner()

    def perturb(self, attempt: Attempt, index: Tensor) -> Tensor:
        classes, targeted = attempt.clean_outputs.shape[1], attempt.targets is not None
        least = "four" if targeted else "three"
        require(
            self.loss == "ce" or classes >= 3 + targeted,
            f"loss: 'dlr' needs at least {least} classes here, and there are {classes}; use 'ce'",
        )
        shown = library.Shown(attempt, self.gradient, index)
        search = APGDAttack_targeted(
            shown,
            n_iter=self.steps,
            norm=library.NORMS[self.norm],
            eps=self.epsilon,
            eot_iter=self.samples,
            use_largereps=self.norm == "l1",
            device=attempt.images.device,
            logger=self._logger,
        )
        search.loss = f"{self.loss}-targeted" if targeted else self.loss
        library.start(library.seed(attempt))
        runs = [run(shown, search)] * self.restarts
        return library.withstand(attempt, index, runs, self.epsilon, self.norm)[0]

    @property
    def passes(self) -> tuple[int, int]:
        points = self.samples * (self.steps + _starts(self.norm))
        return self.restarts * points, self.restarts * points


def run(shown: library.Shown, search: Any) -> library.Run:
    """One start of the library's search.

    It returns the last points that break their images, or the points of highest loss.
    """
    targets = shown.attempt.targets

    def start(images: Tensor, labels: Tensor, index: Tensor) -> Tensor:
        shown.index = index
        search.init_hyperparam(images)
        if targets is not None:
            search.y_target, shown.reached = targets[index], torch.full_like(images, torch.nan)
        if search.use_largereps:
            best, right, _, adversarial = search.decr_eps_pgd(images, labels, *_shrinking(search))
        else:
            best, right, _, adversarial = search.attack_single_run(images, labels)
        if targets is None:
            return best.where(right.bool().reshape(-1, *[1] * (best.dim() - 1)), adversarial)  # type: ignore[no-any-return]
        return best.where(shown.reached.isnan(), shown.reached)  # type: ignore[no-any-return, union-attr]

    return start


def _starts(norm: Norm) -> int:
    """Number of searches that one start consists of, see `_shrinking`; each evaluates its first point in addition."""
    return 3 if norm == "l1" else 1


def _shrinking(search: Any) -> tuple[list[float], list[int]]:
    """Epsilons and numbers of steps of a search in L1, which starts in a larger ball (Croce and Hein 2021, section 4).

    They are three, two and one epsilon, for 30, 30 and 40 % of the steps.
    """
    first = min(math.ceil(0.3 * search.n_iter_orig), (search.n_iter_orig - 1) // 2)
    return [factor * search.eps_orig for factor in (3, 2, 1)], [first, first, search.n_iter_orig - 2 * first]


Version = Literal["standard", "rand"]


class AutoAttack(WhiteBox):
    """Ensemble of attacks by which robustness is usually reported (Croce and Hein 2020), without free parameters.

    `standard` runs four attacks in turn, each on the images that the ones before have not broken: Auto-PGD on the
    cross-entropy; Auto-PGD on the targeted difference of logits ratio (DLR), towards nine classes; FAB (fast adaptive
    boundary), towards nine classes; Square with 5,000 queries. `rand` is for noisy networks. It runs Auto-PGD on the
    cross-entropy and on the DLR loss, with gradients averaged over 20 samples. Attacks and settings come from the
    library pyautoattack, whose log warnings are raised as Python warnings.

    With fewer than ten classes, all wrong classes are targets. The targeted DLR loss needs four classes. With three
    classes `standard` uses the untargeted DLR loss instead, and with two it leaves that attack out.

    A forward pass counts as a query of every image in it, including the passes of the library's checks.

    Args:
        model, epsilon, norm, gradient, seed, batch_size: see `WhiteBox`. Images are (n, C, H, W) for `standard`.
        version: `standard` or `rand`.

    Examples:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        >>> images = torch.rand(4, 1, 8, 8)
        >>> attack = biotorch.robustness.AutoAttack(model, epsilon=0.1, version="rand")
        >>> attack.run(images, model(images).argmax(1)).clean.all().item()
        True
    """

    fixed: ClassVar[Mapping[str, str]] = {"loss": "its attacks have their own losses"}

    def __init__(
        self,
        model: nn.Module,
        epsilon: float = 8 / 255,
        *,
        version: Version = "standard",
        **white_box: Unpack[WhiteBoxArguments],
    ) -> None:
        super().__init__(model, epsilon, **white_box)
        known = typing.get_args(Version)
        require(version in known, f"version: {' or '.join(map(repr, known))} is needed, not {version!r}")
        self.version = version
        self._logger = library.Warner()

    def perturb(self, attempt: Attempt, index: Tensor) -> Tensor:
        if self.version == "standard":
            library.require_tiles(attempt.images, self.norm)
        shown = library.Shown(attempt, self.gradient, index)
        ensemble = self._ensemble(shown, attempt.images.device)
        seed = library.seed(attempt)
        self._check(shown)
        points, right = attempt.images[index], torch.ones_like(index, dtype=torch.bool)
        shares = {"clean": len(index) / len(attempt.labels)}
        for name in _possible(ensemble.attacks_to_run, attempt.clean_outputs.shape[1]):
            library.start(seed)
            runs = _runs(name, ensemble, shown)
            points[right], still = library.withstand(attempt, index[right], runs, self.epsilon, self.norm)
            right[right.clone()] = still
            shares[name] = int(right.sum()) / len(attempt.labels)
            if not bool(right.any()):
                break
        checks.check_square_sr(shares, logger=self._logger)
        return points

    def _ensemble(self, shown: object, device: torch.device | str) -> Any:
        """Attacks of the library, with the settings of the version."""
        ensemble = pyautoattack.AutoAttack(
            shown, eps=self.epsilon, norm=library.NORMS[self.norm], version=self.version, seed=0, device=device
        )
        ensemble.apgd.logger = ensemble.apgd_targeted.logger = self._logger
        return ensemble

    def _check(self, shown: library.Shown) -> None:
        """Run the library's checks of the network, which warn of noise, unsuitable outputs and dynamic defences."""
        images, outputs = (each[shown.index] for each in (shown.attempt.images, shown.attempt.clean_outputs))
        if self.version != "rand":
            checks.check_randomized(shown, images, shown.attempt.labels[shown.index], logger=self._logger)
        checks.check_range_output(lambda _: outputs, images, logger=self._logger)
        library.dynamic(shown, images, self._logger)

    @property
    def passes(self) -> tuple[int, int]:
        ensemble, starts = self._ensemble(None, "cpu"), _starts(self.norm)
        gradients = {
            "apgd-ce": (points := ensemble.apgd.n_restarts * ensemble.apgd.eot_iter * (ensemble.apgd.n_iter + starts)),
            "apgd-dlr": points,
            "apgd-t": ensemble.apgd_targeted.n_target_classes * (ensemble.apgd_targeted.n_iter + starts),
            "fab-t": ensemble.fab.n_target_classes * ensemble.fab.n_iter,
            "square": 0,
        }
        looks = {
            "fab-t": ensemble.fab.n_target_classes * (ensemble.fab.n_iter + 2),
            "square": ensemble.square.n_queries + 1,
        }
        backward = sum(gradients[name] for name in ensemble.attacks_to_run)
        checked = 1 if self.version == "rand" else 6
        return checked + backward + sum(looks.get(name, 0) for name in ensemble.attacks_to_run), backward


def _possible(attacks: Sequence[str], classes: int) -> list[str]:
    """Attacks of a version that work with `classes` classes."""
    if classes == 3:
        attacks = ["apgd-dlr" if name == "apgd-t" else name for name in attacks]
    return [name for name in attacks if classes > 2 or name not in ("apgd-t", "apgd-dlr")]


def _runs(name: str, ensemble: Any, shown: library.Shown) -> Iterator[library.Run]:
    """Runs of one attack of the ensemble."""
    classes = shown.attempt.clean_outputs.shape[1]
    if name == "apgd-t":
        for target in range(2, min(ensemble.apgd_targeted.n_target_classes, classes - 1) + 2):
            yield _towards(target, ensemble.apgd_targeted, shown)
    elif name == "fab-t":
        for target in range(2, min(ensemble.fab.n_target_classes, classes - 1) + 2):
            yield boundary.across(target, ensemble.fab, shown)
    elif name == "square":
        yield library.run(shown, ensemble.square)
    else:
        ensemble.apgd.loss = name.removeprefix("apgd-")
        for _ in range(ensemble.apgd.n_restarts):
            yield run(shown, ensemble.apgd)


def _towards(target: int, search: Any, shown: library.Shown) -> library.Run:
    """Run of Auto-PGD towards the class with the `target`-highest output at the image."""
    ranked = shown.attempt.clean_outputs.argsort(1)

    def start(images: Tensor, labels: Tensor, index: Tensor) -> Tensor:
        search.y_target = ranked[index, -target]
        return run(shown, search)(images, labels, index)

    return start
