"""Registry of attacks by name, and the plan of a study: its attacks and their epsilons."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from torch import Tensor, nn

from biotorch import _names
from biotorch._sections import read_radius
from biotorch.robustness.attacks.attempt import Gradient
from biotorch.robustness.attacks.auto_attack import AutoAttack, AutoPGD
from biotorch.robustness.attacks.base import Attack, gradients_of
from biotorch.robustness.attacks.blind import RandomSigns, Transfer
from biotorch.robustness.attacks.boundary import FAB, DeepFool
from biotorch.robustness.attacks.few_pixel import FewPixel
from biotorch.robustness.attacks.gradient import EOTPGD, FGSM, PGD, TPGD, WhiteBox
from biotorch.robustness.attacks.inputs import arguments, is_number, require
from biotorch.robustness.attacks.library import Square
from biotorch.robustness.attacks.multi_targeted import MultiTargeted
from biotorch.robustness.attacks.norms import Norm
from biotorch.robustness.attacks.smallest import CW
from biotorch.robustness.measurement import TWIN, Planned

ATTACKS: dict[str, type[Attack]] = {
    "fgsm": FGSM,
    "pgd": PGD,
    "eot_pgd": EOTPGD,
    "tpgd": TPGD,
    "multi_targeted": MultiTargeted,
    "few_pixel": FewPixel,
    "square": Square,
    "auto_pgd": AutoPGD,
    "auto_attack": AutoAttack,
    "cw": CW,
    "deepfool": DeepFool,
    "fab": FAB,
    "random_signs": RandomSigns,
}


def find(name: str) -> type[Attack]:
    """Attack class by name. Raises ValueError, which suggests the nearest name, for an unknown one."""
    if name not in ATTACKS:
        raise _names.unknown("attack", name, ATTACKS)
    return ATTACKS[name]


Preset = Literal["quick", "paper"]

#: Forms in which a caller may give an attack: a name, a name with settings, or an `Attack` subclass.
Wanted = str | Mapping[str, Any] | type[Attack]

#: Number of images that the paper's black-box attacks see (appendix 6.3), and all attacks of a quick study.
FEW = 500

#: Epsilons of the paper, 0 to 0.1 in steps of 0.01.
PAPER_EPSILONS = tuple(step / 100 for step in range(11))

#: Default epsilons of a quick study: those at which digits (one channel) and photographs are usually attacked.
_GREY: dict[Norm, tuple[float, ...]] = {"linf": (0.1, 0.2, 0.3), "l2": (1.0, 1.5, 2.0), "l1": (5.0, 7.5, 10.0)}
_COLOUR: dict[Norm, tuple[float, ...]] = {"linf": (2 / 255, 8 / 255), "l2": (0.25, 0.5), "l1": (6.0, 12.0)}

#: Attacks of the paper. It prints neither steps nor step sizes of its white-box attacks. We take the defaults of the
#: library that it used, in the version current at the time (torchattacks 3.0.0).
_PAPER: tuple[Wanted, ...] = (
    "random_signs",
    "fgsm",
    {"type": "pgd", "steps": 40, "step_size": 2 / 255},
    {"type": "eot_pgd", "steps": 40, "step_size": 2 / 255, "samples": 10},
    {"type": "tpgd", "steps": 7, "step_size": 2 / 255},
    *({"type": "few_pixel", "pixels": pixels, "steps": 30, "population": 150} for pixels in range(1, 6)),
)
_QUICK: tuple[Wanted, ...] = ("random_signs", "fgsm", "pgd")

#: Query budgets of Square in each preset. The paper uses 50 queries, which are few, and separate epsilons for them. So
#: the preset adds larger budgets at the epsilons of the white-box attacks.
_QUERIES: dict[Preset, tuple[int, ...]] = {"quick": (1000,), "paper": (50, 1000, 5000)}
_PAPER_QUERIES = 50
_SQUARE_EPSILONS = tuple(0.1 * step / 29 for step in range(30))


def default_epsilons(images: Tensor, norm: Norm) -> tuple[float, ...]:
    """Epsilons at which images (n, ...) are usually attacked: larger ones for grey images than for coloured ones.

    Raises ValueError for an unknown norm.
    """
    usual = _COLOUR if images.dim() == 4 and images.shape[1] > 1 else _GREY
    require(norm in usual, f"norm: one of {', '.join(usual)} is needed, not {norm!r}")
    return usual[norm]


def plan(
    model: nn.Module,
    attacks: Sequence[Wanted] | Wanted | None = None,
    epsilons: Sequence[float | str] | float | str | None = None,
    preset: Preset = "quick",
    *,
    usual: Sequence[float] = _GREY["linf"],
    norm: Norm = "linf",
    autoattack: bool = False,
    square_queries: Sequence[int] | None = None,
    transfer: bool = False,
    tiles: bool = True,
) -> list[Planned]:
    """Planned attacks of a study, without those that only its checks need.

    A white-box attack whose settings choose no gradient is planned along both, unless the network has only one. Without
    `epsilons`, the preset `paper` has its own, and `quick` takes the `usual` ones, see `default_epsilons`. Square is
    left out of the defaults unless it can tile the images.

    Raises:
        ValueError: an attack or the preset is unknown, an attack does not take its settings, or a radius is no number.
    """
    if preset not in _QUERIES:
        raise _names.unknown("preset", preset, _QUERIES)
    own = PAPER_EPSILONS if preset == "paper" else usual
    radii = own if epsilons is None else _radii(epsilons)
    attacks = [attacks] if isinstance(attacks, str | Mapping | type) else attacks
    wanted = list((_PAPER if preset == "paper" else _QUICK) if attacks is None else attacks)
    found = [each for one in wanted for each in _entries(one, radii, norm, model)]
    usual_queries = _QUERIES[preset] if tiles and attacks is None else ()
    queries = usual_queries if square_queries is None else square_queries
    few = FEW if preset == "paper" else None
    for count in queries:
        as_printed = preset == "paper" and epsilons is None and count == _PAPER_QUERIES
        at = _SQUARE_EPSILONS if as_printed else radii
        square = {"type": "square", "queries": count, "p_init": 0.8, "loss": "margin"}
        found += [dataclasses.replace(each, images=few) for each in _entries(square, at, norm, model)]
    if preset == "paper":
        found = [dataclasses.replace(each, images=few) if each.name == "few_pixel" else each for each in found]
    if transfer:
        found += _transfers(model, radii, norm)
    if autoattack:
        found += _entries({"type": "auto_attack", "gradient": "true"}, radii, norm, model)
    return list(dict.fromkeys(found))


def _radii(epsilons: Sequence[float | str] | float | str) -> tuple[float, ...]:
    """Radii as numbers, of which the section `attacks` takes the same texts."""
    several: Any = [epsilons] if isinstance(epsilons, str) or is_number(epsilons) else epsilons
    try:
        found: list[Any] = [read_radius(each) for each in several]
    except (TypeError, ValueError) as error:
        raise ValueError(f"epsilons: {error}") from error
    require(all(map(is_number, found)), f"epsilons: numbers or fractions such as 8/255 are needed, not {epsilons!r}")
    return tuple(map(float, found))


def for_checks(reference: Planned, larger: float, unbounded: float) -> Iterator[Planned]:
    """Variants of the reference attack for the checks, at its own epsilon unless said otherwise.

    One step; fewer steps (weaker); more restarts (stronger); a larger epsilon; and no bound and no random start,
    because noise alone breaks images if it is as large as they are.

    Args:
        reference: PGD along the true gradient.
        larger: next epsilon above the one of the verdict.
        unbounded: epsilon whose ball contains every possible image.
    """
    steps, restarts = reference.settings.get("steps", 40), reference.settings.get("restarts", 1)
    yield dataclasses.replace(reference, name="fgsm", kind=FGSM, settings=_norm_of(reference), purpose="check")
    yield _varied(reference, steps=max(1, steps // 4))
    yield dataclasses.replace(_varied(reference, restarts=2 * restarts), seed=1)
    yield dataclasses.replace(_varied(reference), epsilon=larger)
    yield dataclasses.replace(_varied(reference, step_size=None, random_start=False), epsilon=unbounded)


def longer_than(reference: Planned) -> Planned:
    """The reference attack with twice as many steps, to test whether a loss still rising would break more images."""
    return _varied(reference, steps=2 * reference.settings.get("steps", 40))


def _varied(reference: Planned, **settings: Any) -> Planned:
    """The reference attack with other settings, for a check."""
    return dataclasses.replace(reference, settings=_Settings({**reference.settings, **settings}), purpose="check")


#: Queries of Square, and steps towards each class, without which no network is called robust.
BUDGET = 1000
_STEPS_PER_CLASS = 20


def confirmations(reference: Planned, sources: Sequence[str], tiles: bool) -> Iterator[Planned]:
    """Attacks that a network must withstand, too, before it is called robust.

    Args:
        reference: PGD along the true gradient, at the epsilon of the verdict.
        sources: names of the network's parts that classify alone, from which examples are transferred.
        tiles: whether Square can tile the images.
    """
    norm = _norm_of(reference)
    towards = _Settings({"steps": _STEPS_PER_CLASS, **norm})
    yield dataclasses.replace(reference, name="multi_targeted", kind=MultiTargeted, settings=towards)
    blind = dataclasses.replace(reference, gradient=None, settings=norm)
    for source in sources:
        yield dataclasses.replace(blind, name="transfer", kind=Transfer, source=source)
    if tiles:
        square = _Settings({"queries": BUDGET, "p_init": 0.8, "loss": "margin", **norm})
        yield dataclasses.replace(blind, name="square", kind=Square, settings=square, images=FEW)


class _Settings(dict[str, Any]):
    """Hashable settings, so that planned attacks can be dictionary keys."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(repr(sorted(self.items())))


def _norm_of(planned: Planned) -> _Settings:
    """Settings of an attack in the norm of another one."""
    return _Settings({name: value for name, value in planned.settings.items() if name == "norm"})


#: Arguments of attacks that the study sets.
_OF_THE_STUDY = {"epsilon", "seed", "batch_size", "abstain"}


def _entries(wanted: Wanted, epsilons: Sequence[float], norm: Norm, model: nn.Module) -> list[Planned]:
    name, kind, settings = _read(wanted)
    gradient = settings.pop("gradient", None)
    gradients: tuple[Gradient | None, ...] = (None,)
    if issubclass(kind, WhiteBox):
        gradients = (gradient,) if gradient else gradients_of(model)
    if "epsilon" in kind.fixed:
        epsilons = (float(settings.get("pixels", 1)),)
    elif settings.get("norm", norm) != norm:
        raise ValueError(
            f"attacks: {name} uses the norm {settings['norm']}, but the study uses {norm}, and their epsilons cannot "
            "be compared; set the norm of the study, or make one study per norm"
        )
    elif norm != arguments(kind)["norm"]:
        settings["norm"] = norm
    entries = [
        Planned(name, kind, _Settings(settings), each, float(radius)) for each in gradients for radius in epsilons
    ]
    for each in entries:
        each.build(nn.Identity(), seed=0, batch_size=1)  # raises for unusable settings before any attack runs
    return entries


def _read(wanted: Wanted) -> tuple[str, type[Attack], dict[str, Any]]:
    if isinstance(wanted, str):
        return wanted, find(wanted), {}
    if isinstance(wanted, type) and issubclass(wanted, Attack):
        names = [name for name, kind in ATTACKS.items() if kind is wanted]
        return (names or [wanted.__name__])[0], wanted, {}
    if not isinstance(wanted, Mapping) or not isinstance(wanted.get("type"), str):
        raise ValueError(f"attacks: a name, a class or {{type: name, ...}} is needed, not {wanted!r}")
    settings = {key: value for key, value in wanted.items() if key != "type"}
    if settings.get("gradient") is True:  # YAML reads an unquoted `true` as a bool
        settings["gradient"] = "true"
    kind = find(wanted["type"])
    refused = settings.keys() - (arguments(kind).keys() - _OF_THE_STUDY)
    if refused:
        raise ValueError(
            f"attacks: {wanted['type']} takes no {', '.join(sorted(refused))}; it takes {', '.join(arguments(kind))}; "
            "the study sets epsilon, seed and batch_size"
        )
    return wanted["type"], kind, settings


def completed_attack(wanted: Any, norm: str) -> Any:
    """Attack of a configuration as {type: name, ...} with the defaults of all settings that the study leaves open."""
    settings = {"type": wanted} if isinstance(wanted, str) else wanted
    kind = ATTACKS.get(str(settings.get("type"))) if isinstance(settings, Mapping) else None
    if kind is None:
        return wanted
    defaults = arguments(kind)
    left_open = {name: value for name, value in defaults.items() if name not in _OF_THE_STUDY}
    gradient = {"gradient": None} if "gradient" in left_open else {}  # both
    return {**left_open, **gradient, "norm": norm, **settings}


def _transfers(model: nn.Module, epsilons: Sequence[float], norm: Norm) -> list[Planned]:
    """Transfer attacks from the twin to the network, and back to the twin along each gradient of the network."""
    settings = _Settings({} if norm == "linf" else {"norm": norm})
    found = [Planned("transfer", Transfer, settings, None, float(each), source=TWIN) for each in epsilons]
    back = [
        Planned("transfer_to", Transfer, settings, kind, float(each), on_twin=True)
        for kind in gradients_of(model)
        for each in epsilons
    ]
    return found + back


def reference_of(planned: Sequence[Planned], noisy: bool) -> Planned | None:
    """Reference attack: the planned PGD along the true gradient with the most steps; None if there is none.

    For a noisy network it is the one that averages gradients over the noise (EOT-PGD), if that is planned.
    """
    along = [each for each in planned if each.gradient == "true" and each.purpose == "figure"]
    for kind in (EOTPGD, PGD) if noisy else (PGD,):
        if candidates := [each for each in along if each.kind is kind]:
            return max(candidates, key=lambda each: each.settings.get("steps", 40))
    return None
