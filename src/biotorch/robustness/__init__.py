"""Adversarial robustness: attacks, and studies of them that do not fool their user."""

from biotorch.robustness.attack import Attack, BoundsError, Outcome
from biotorch.robustness.eotpgd import EOTPGD
from biotorch.robustness.fgsm import FGSM
from biotorch.robustness.findings import Study
from biotorch.robustness.noise import RandomSigns
from biotorch.robustness.normalised import Normalised
from biotorch.robustness.pgd import PGD
from biotorch.robustness.study import study
from biotorch.robustness.tpgd import TPGD
from biotorch.robustness.transfer import Transfer

__all__ = [
    "EOTPGD",
    "FGSM",
    "PGD",
    "TPGD",
    "Attack",
    "BoundsError",
    "Normalised",
    "Outcome",
    "RandomSigns",
    "Study",
    "Transfer",
    "study",
]
