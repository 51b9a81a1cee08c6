"""The attacks by name, as configurations have them."""

from __future__ import annotations

from biotorch import names
from biotorch.robustness.attack import Attack
from biotorch.robustness.auto_attack import AutoAttack
from biotorch.robustness.auto_pgd import AutoPGD
from biotorch.robustness.eotpgd import EOTPGD
from biotorch.robustness.few_pixel import FewPixel
from biotorch.robustness.fgsm import FGSM
from biotorch.robustness.noise import RandomSigns
from biotorch.robustness.pgd import PGD
from biotorch.robustness.square import Square
from biotorch.robustness.tpgd import TPGD

ATTACKS: dict[str, type[Attack]] = {
    "fgsm": FGSM,
    "pgd": PGD,
    "eot_pgd": EOTPGD,
    "tpgd": TPGD,
    "few_pixel": FewPixel,
    "square": Square,
    "auto_pgd": AutoPGD,
    "auto_attack": AutoAttack,
    "random_signs": RandomSigns,
}


def find(name: str) -> type[Attack]:
    """The attack of a name. Raises ValueError, with the nearest name, where there is none."""
    if name not in ATTACKS:
        raise names.unknown("attack", name, ATTACKS)
    return ATTACKS[name]
