"""AutoAttack."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, Unpack

import torch
from pyautoattack.autoattack import AutoAttack as Library
from torch import Tensor, nn

from biotorch.robustness.attack import require
from biotorch.robustness.attempt import Attempt
from biotorch.robustness.library import LOGGER, NORMS, running, share
from biotorch.robustness.norms import project
from biotorch.robustness.white_box import WhiteBox, WhiteBoxArguments

#: The targeted attacks try so many classes, and the targeted DLR loss needs four.
_TARGETS, _FEWEST = 9, 4


class AutoAttack(WhiteBox):
    """Four attacks in turn, each on what the others have left (Croce and Hein 2020), by pyautoattack.

    `standard`: Auto-PGD on the cross-entropy, targeted Auto-PGD on the DLR loss and targeted FAB on nine classes, 100
    steps each, and Square with 5,000 queries. Networks of fewer than ten classes have fewer targets; for fewer than
    four the targeted attacks do not exist, and FAB without targets takes their place.

    Args:
        model, epsilon, gradient, norm, seed, batch_size: as of `WhiteBox`. It has losses of its own.
        version: `standard`, or `rand` for networks with noise in them (Auto-PGD on both losses, 20 gradients a step).
    """

    fixed: ClassVar[Mapping[str, str]] = {"loss": "its attacks have their own"}

    def __init__(
        self,
        model: nn.Module,
        epsilon: float = 8 / 255,
        *,
        version: Literal["standard", "rand"] = "standard",
        **white_box: Unpack[WhiteBoxArguments],
    ) -> None:
        for name in self.fixed.keys() & white_box:
            raise TypeError(f"{name}: AutoAttack takes none, {self.fixed[name]}")
        super().__init__(model, epsilon, **white_box)
        require(version in ("standard", "rand"), f"version: 'standard' or 'rand' is needed, not {version!r}")
        self.version = version

    def perturb(self, attempt: Attempt, index: Tensor) -> Tensor:
        images, labels = attempt.images[index], attempt.labels[index]
        classes = attempt.clean_outputs.shape[1]
        with running(attempt, self.gradient) as network:
            library = Library(
                network,
                norm=NORMS[self.norm],
                eps=self.epsilon,
                seed=torch.initial_seed(),
                version=self.version,
                device=images.device,
            )
            library.logger = library.apgd.logger = library.apgd_targeted.logger = LOGGER
            library.verbose = False
            targets = min(_TARGETS, classes - 1)
            library.apgd_targeted.n_target_classes = library.fab.n_target_classes = targets
            if classes < _FEWEST:
                few = ["apgd-ce", "fab", "square"] if self.version == "standard" else ["apgd-ce"]
                library.attacks_to_run = few
            found, _ = library.run_standard_evaluation(images.float(), labels, batch_size=self.batch_size)
        share(attempt, index, network)
        return project(found.to(images), images, self.epsilon, self.norm)

    @property
    def passes(self) -> tuple[int, int]:
        if self.version == "rand":
            return 2 * 20 * 101 + 8, 2 * 20 * 101
        # FAB takes the gradients of two outputs, and looks at the point again, in each of its steps.
        apgd, fab = 101 * (1 + _TARGETS), 100 * _TARGETS
        return apgd + 2 * fab + 5010, apgd + 2 * fab
