"""The `attacks` section of a configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field, model_validator
from torch import nn

from biotorch._sections import Epsilon, Place, Section
from biotorch.errors import SectionError
from biotorch.robustness.attacks.norms import Norm
from biotorch.robustness.plan import FEW, PAPER_EPSILONS, Preset, completed_attack, plan


class AttacksConfig(Section):
    """Section `attacks`: settings of a robustness study of trained networks."""

    preset: Preset = "quick"
    """`quick` runs random signs, FGSM, PGD and Square. `paper` uses the settings of the paper's
    section 4.2, as we read them, on the whole test set. It takes hours on a laptop."""
    images: int | None = Field(default=None, ge=1)
    """Number of test images to attack, counted from the first. Default: 500; with `paper` the whole test set, of which
    the black-box attacks see 500."""
    epsilons: list[Epsilon] | None = Field(default=None, min_length=1)
    """Radii, as numbers or as texts such as "8/255". Default: 0.1, 0.2 and 0.3 for images of one channel (in L2 1, 1.5
    and 2), and 2/255 and 8/255 for others (in L2 0.25 and 0.5); with `paper` 0 to 0.1 in steps of 0.01. The verdict is
    given at the middle one, of two at the larger."""
    norm: Norm = "linf"
    """Norm of the ball that bounds the perturbations: `linf`, `l2` or `l1`."""
    attacks: list[str | dict[str, Any]] | None = Field(default=None, min_length=1)
    """Attacks that replace those of the preset, as names or as {type: name} with settings. A white-box attack runs
    twice, along the true and along the feedback gradient, unless its settings choose one."""
    autoattack: bool = False
    """Run AutoAttack (standard) in addition."""
    smallest: bool = False
    """Look for the smallest perturbation of each image in addition, by DeepFool and FAB, and with `l2` by C&W."""
    square_queries: list[int] | None = None
    """Query budgets of Square. Default: 1,000; with `paper` 50, 1,000 and 5,000."""
    twin: Place | None = None
    """Run whose network takes part in transfer attacks. Default: the backpropagation run of the same sweep that is
    otherwise configured alike, if there is one."""
    corruptions: bool = False
    """Measure in addition the accuracy under fifteen common corruptions at five severities, and the mean corruption
    error relative to the twin."""
    calibration: bool = False
    """Measure in addition whether the confidence agrees with the accuracy (expected calibration error)."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of all randomness in the attacks and corruptions."""
    batch_size: int = Field(default=250, ge=1)
    """Number of images attacked or corrupted at once."""

    @model_validator(mode="after")
    def _attacks_exist(self) -> AttacksConfig:
        radii: Sequence[float] | None = self.epsilons
        if radii is not None and not any(radii):
            raise SectionError({"epsilons": "at least one above 0 is needed"})
        if radii is not None and self.norm == "linf" and max(radii) > 1:
            raise SectionError(
                {
                    "epsilons": f"{max(radii):g} is more than any pixel in [0, 1] can change; "
                    "write a fraction such as 8/255"
                }
            )
        for index, wanted in enumerate(self.attacks or ()):
            try:
                plan(nn.Identity(), [wanted], radii, self.preset, norm=self.norm)
            except (ValueError, TypeError) as error:
                raise SectionError({f"attacks.{index}": str(error)}) from error
        if any(queries < 1 for queries in self.square_queries or ()):
            raise SectionError({"square_queries": "all numbers must be at least 1"})
        return self

    @classmethod
    def completed(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        found = super().completed(values)
        preset, attacks = found["preset"], found["attacks"]
        if preset == "paper" and found["epsilons"] is None:
            found["epsilons"] = list(PAPER_EPSILONS)
        if preset == "quick" and found["images"] is None:
            found["images"] = FEW
        if isinstance(attacks, list):
            found["attacks"] = [completed_attack(each, found["norm"]) for each in attacks]
        return found

    @property
    def wanted_images(self) -> int | None:
        """Number of test images to attack, or None for all of them."""
        return FEW if self.images is None and self.preset == "quick" else self.images
