"""Adversarial robustness: attacks, studies that check their own attacks, common corruptions and calibration."""

from biotorch.errors import BoundsError
from biotorch.robustness.attacks.auto_attack import AutoAttack, AutoPGD
from biotorch.robustness.attacks.base import Attack, Outcome
from biotorch.robustness.attacks.blind import RandomSigns, Transfer
from biotorch.robustness.attacks.boundary import FAB, DeepFool
from biotorch.robustness.attacks.few_pixel import FewPixel
from biotorch.robustness.attacks.gradient import EOTPGD, FGSM, PGD, TPGD
from biotorch.robustness.attacks.library import Square
from biotorch.robustness.attacks.multi_targeted import MultiTargeted
from biotorch.robustness.attacks.norms import as_8bit
from biotorch.robustness.attacks.smallest import CW, Smallest
from biotorch.robustness.attacks.wrappers import Detector, Normalised, straight_through
from biotorch.robustness.calibration import Calibration, calibration
from biotorch.robustness.corrupting import corrupt
from biotorch.robustness.corruptions import Corruptions, corruptions
from biotorch.robustness.runner import Display
from biotorch.robustness.study import study
from biotorch.robustness.verdict import Study

__all__ = [
    "CW",
    "EOTPGD",
    "FAB",
    "FGSM",
    "PGD",
    "TPGD",
    "Attack",
    "AutoAttack",
    "AutoPGD",
    "BoundsError",
    "Calibration",
    "Corruptions",
    "DeepFool",
    "Detector",
    "Display",
    "FewPixel",
    "MultiTargeted",
    "Normalised",
    "Outcome",
    "RandomSigns",
    "Smallest",
    "Square",
    "Study",
    "Transfer",
    "as_8bit",
    "calibration",
    "corrupt",
    "corruptions",
    "straight_through",
    "study",
]
