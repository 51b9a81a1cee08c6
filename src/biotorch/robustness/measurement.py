"""One attack at one epsilon: the plan, the outcome, and how sure a figure is."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from biotorch.robustness.attacks.attempt import Gradient
from biotorch.robustness.attacks.base import Attack, Outcome

#: Of the normal distribution, for 95 %.
_QUANTILE = 1.959964

#: How unlikely a difference has to be by chance to be called more than noise. A study makes tens of comparisons.
NOISE = 0.001


def interval(successes: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927), in percent."""
    z2, share = _QUANTILE**2, successes / n
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _QUANTILE / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return 100 * max(0.0, centre - half), 100 * min(1.0, centre + half)


def chance(wins: int, losses: int) -> float:
    """The probability of at least `wins` heads in `wins + losses` tosses of a coin: a one-sided sign test."""
    n = wins + losses
    logarithms = (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(wins, n + 1))
    return min(1.0, sum(math.exp(value - n * math.log(2)) for value in logarithms))


def beats(attack: Tensor, other: Tensor) -> bool:
    """Whether an attack breaks more images than another by more than noise.

    The paired sign test (McNemar 1947), at `NOISE`: only images on which the two differ count.

    Args:
        attack, other: (n,) bool, whether each image withstands.
    """
    wins, losses = int((other & ~attack).sum()), int((attack & ~other).sum())
    return wins > losses and chance(wins, losses) < NOISE


#: Of the JSON of a measurement.
FORMAT = 1

#: `figure`: stands in the table; `check`: run for a sanity check alone.
Purpose = Literal["figure", "check"]


@dataclasses.dataclass(frozen=True)
class Planned:
    """One attack at one epsilon.

    Attributes:
        name: of the attack, as in a configuration.
        kind: its class.
        settings: its arguments, beside network, epsilon, gradient, seed and batch size.
        gradient: of a white-box attack; None of the others.
        epsilon: radius, or the number of pixels of an attack that counts them.
        images: how many of the first images are attacked; None: all.
        purpose: why it is run.
        seed: added to that of the study.
    """

    name: str
    kind: type[Attack]
    settings: Mapping[str, Any]
    gradient: Gradient | None
    epsilon: float
    images: int | None = None
    purpose: Purpose = "figure"
    seed: int = 0

    @property
    def label(self) -> str:
        """Such as `pgd steps=10`: the attack with the settings that it was given."""
        return " ".join([self.name, *(f"{key}={_shown(value)}" for key, value in self.settings.items())])

    def build(self, model: nn.Module, seed: int, batch_size: int, **more: Any) -> Attack:
        """The attack on `model`."""
        arguments: dict[str, Any] = {**self.settings, "seed": seed + self.seed, "batch_size": batch_size, **more}
        if self.gradient is not None:
            arguments["gradient"] = self.gradient
        if "epsilon" not in self.kind.fixed:
            arguments["epsilon"] = self.epsilon
        return self.kind(model, **arguments)


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What an attack at one epsilon has left of a network's accuracy. Accuracies are in percent.

    Attributes:
        name, label, gradient, epsilon, purpose: as of `Planned`.
        settings: every argument of the attack.
        n: images.
        clean_accuracy: share of the images that are classified as labelled without an attack.
        robust_accuracy: share of the images for which that holds without the attack and under it.
        robust: per image, 1 where it withstands and 0 where not.
        queries: mean and largest number of forward passes per image, and their sum.
        blind: images for which a gradient was zero everywhere or not finite.
        rising: of images that withstand, the share of the whole rise of the loss that fell into the last quarter of
            the steps; None where none withstand or the attack has no steps.
        seconds: it took.
        identity: digest of network, images and settings.
    """

    name: str
    label: str
    gradient: Gradient | None
    epsilon: float
    purpose: Purpose
    settings: Mapping[str, Any]
    n: int
    clean_accuracy: float
    robust_accuracy: float
    interval: tuple[float, float]
    robust: str
    queries: Mapping[str, float]
    blind: int
    rising: float | None
    seconds: float
    identity: str

    @classmethod
    def of(cls, planned: Planned, attack: Attack, outcome: Outcome, seconds: float, identity: str) -> Measurement:
        """From what the attack has done."""
        n, kept = len(outcome.robust), int(outcome.robust.sum())
        queries = outcome.queries.double()
        return cls(
            planned.name,
            planned.label,
            planned.gradient,
            planned.epsilon,
            planned.purpose,
            {key: value for key, value in attack.settings.items() if not isinstance(value, nn.Module)},
            n,
            100 * int(outcome.clean.sum()) / n,
            100 * kept / n,
            interval(kept, n),
            "".join("1" if each else "0" for each in outcome.robust.tolist()),
            {"mean": float(queries.mean()), "max": float(queries.max()), "total": float(queries.sum())},
            int((outcome.blind & outcome.clean).sum()),
            _late_rise(outcome),
            seconds,
            identity,
        )

    @property
    def withstands(self) -> Tensor:
        """(n,) bool, whether each image withstands the attack."""
        return _bits(self.robust)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {"format": FORMAT, "attack": values.pop("name"), **values, "interval": list(self.interval)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Measurement:
        """The measurement that `to_json` has told. Raises KeyError, TypeError or ValueError where it is none."""
        if values["format"] != FORMAT:
            raise ValueError(f"format {values['format']!r}, not {FORMAT}")
        names = [field.name for field in dataclasses.fields(cls)]
        found = {name: values["attack" if name == "name" else name] for name in names}
        return cls(**{**found, "interval": tuple(values["interval"])})


@functools.lru_cache(maxsize=4096)
def _bits(text: str) -> Tensor:
    return torch.tensor([each == "1" for each in text])


def _late_rise(outcome: Outcome) -> float | None:
    losses = outcome.losses
    if losses is None or len(losses) < 4 or not bool(outcome.robust.any()):
        return None
    survivors = losses[:, outcome.robust]
    start, late, end = survivors[0], survivors[round(0.75 * (len(losses) - 1))], survivors[-1]
    whole, tail = float((end - start).nanmean()), float((end - late).nanmean())
    return tail / whole if math.isfinite(whole) and whole > 0 else None


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
