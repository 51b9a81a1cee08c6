"""Adversarial robustness: attacks, and studies of them that do not fool their user."""

from biotorch.robustness.attack import Attack, BoundsError, Outcome
from biotorch.robustness.auto_attack import AutoAttack
from biotorch.robustness.auto_pgd import AutoPGD
from biotorch.robustness.eotpgd import EOTPGD
from biotorch.robustness.few_pixel import FewPixel
from biotorch.robustness.fgsm import FGSM
from biotorch.robustness.findings import Study
from biotorch.robustness.noise import RandomSigns
from biotorch.robustness.normalised import Normalised
from biotorch.robustness.pgd import PGD
from biotorch.robustness.running import Display
from biotorch.robustness.square import Square
from biotorch.robustness.study import study
from biotorch.robustness.tpgd import TPGD
from biotorch.robustness.transfer import Transfer

__all__ = [
    "EOTPGD",
    "FGSM",
    "PGD",
    "TPGD",
    "Attack",
    "AutoAttack",
    "AutoPGD",
    "BoundsError",
    "Display",
    "FewPixel",
    "Normalised",
    "Outcome",
    "RandomSigns",
    "Square",
    "Study",
    "Transfer",
    "study",
]
