"""The `attacks` section of a configuration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator
from torch import nn

from biotorch._sections import Epsilon, Section
from biotorch.errors import SectionError
from biotorch.robustness.attacks.norms import Norm
from biotorch.robustness.plan import Preset, plan


class AttacksConfig(Section):
    """`attacks`: how the robustness of a trained network is studied."""

    preset: Preset = "quick"
    """`quick`: random signs, FGSM, PGD and Square at three epsilons; `paper`: the settings of the paper's section 4.2
    as we read them, on the whole test set, which takes hours on a laptop."""
    images: int | None = Field(default=None, ge=1)
    """The first so many of the test set; default: 500, for `paper` all of them, of which the black-box attacks see
    500."""
    epsilons: list[Epsilon] | None = Field(default=None, min_length=1)
    """Radii, as numbers or as texts such as "8/255"; default: 2/255, 8/255 and 0.1, for `paper` 0 to 0.1 by 0.01."""
    norm: Norm = "linf"
    """Of the ball: `linf` or `l2`."""
    attacks: list[str | dict[str, Any]] | None = Field(default=None, min_length=1)
    """Instead of those of the preset: names, or {type: name} with settings. A white-box attack follows the true and
    the feedback gradient unless it is told one."""
    autoattack: bool = False
    """Run AutoAttack (standard), too."""
    square_queries: list[int] | None = None
    """Budgets of Square; default: 1,000, for `paper` 50, 1,000 and 5,000."""
    twin: Path | None = None
    """A run whose network takes part in transfer attacks; default: the one of the same sweep that differs by being
    trained by backpropagation, if there is one."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Of all randomness of the attacks."""
    batch_size: int = Field(default=250, ge=1)
    """Images attacked at once."""

    @model_validator(mode="after")
    def _attacks_exist(self) -> AttacksConfig:
        radii: Sequence[float] | None = self.epsilons
        if radii is not None and not any(radii):
            raise SectionError({"epsilons": "one above 0 is needed"})
        for index, wanted in enumerate(self.attacks or ()):
            try:
                plan(nn.Identity(), [wanted], radii, self.preset, norm=self.norm)
            except (ValueError, TypeError) as error:
                raise SectionError({f"attacks.{index}": str(error)}) from error
        if any(queries < 1 for queries in self.square_queries or ()):
            raise SectionError({"square_queries": "numbers from 1 on are needed"})
        return self

    @property
    def wanted_images(self) -> int | None:
        """How many of the test set are attacked; None: all."""
        return 500 if self.images is None and self.preset == "quick" else self.images
