"""One attack at one epsilon: its plan, its measurement, and the statistics of accuracies."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from biotorch.robustness.attacks.attempt import Gradient
from biotorch.robustness.attacks.base import Attack, Outcome, Role

#: Quantile of the normal distribution for a 95 % interval.
_QUANTILE = 1.959964

#: Level below which the sign test calls a difference more than noise. It is strict because a study makes tens of
#: comparisons.
NOISE = 0.001


def interval(successes: int, n: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927), in percent."""
    z2, share = _QUANTILE**2, successes / n
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _QUANTILE / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return 100 * max(0.0, centre - half), 100 * min(1.0, centre + half)


def chance(wins: int, losses: int) -> float:
    """Probability of at least `wins` heads in `wins + losses` tosses of a fair coin (one-sided sign test)."""
    n = wins + losses
    logarithms = (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(wins, n + 1))
    return min(1.0, sum(math.exp(value - n * math.log(2)) for value in logarithms))


def beats(attack: Tensor, other: Tensor) -> bool:
    """Whether one attack breaks more images than another, by more than noise.

    Decided by the paired sign test (McNemar 1947) at level `NOISE`. It counts only images on which the two differ.

    Args:
        attack, other: (n,) bool, whether each image withstands the attack.
    """
    wins, losses = int((other & ~attack).sum()), int((attack & ~other).sum())
    return wins > losses and chance(wins, losses) < NOISE


#: Version of the JSON format of a measurement.
FORMAT = 1

#: Source of transfers from the twin.
TWIN = "twin"

#: `figure`: shown in the table; `check`: run only for a sanity check.
Purpose = Literal["figure", "check"]


@dataclasses.dataclass(frozen=True)
class Planned:
    """One attack at one epsilon, before it is run.

    Attributes:
        name: name of the attack, as in a configuration.
        kind: class of the attack.
        settings: arguments of the attack except network, epsilon, gradient, seed and batch size.
        gradient: gradient that a white-box attack follows; None for other attacks.
        epsilon: radius, or the number of pixels for few-pixel.
        images: number of images to attack, counted from the first; None for all.
        purpose: reason to run it, see `Purpose`.
        seed: offset that is added to the study's seed.
        source: network of a transfer: `twin`, or the name of a part of the network that classifies alone.
        on_twin: whether the attack is one on the twin, by examples made on the network.
    """

    name: str
    kind: type[Attack]
    settings: Mapping[str, Any]
    gradient: Gradient | None
    epsilon: float
    images: int | None = None
    purpose: Purpose = "figure"
    seed: int = 0
    source: str | None = None
    on_twin: bool = False

    @property
    def label(self) -> str:
        """Name of the attack with its settings, such as `pgd steps=10`."""
        part = [] if self.source in (None, TWIN) else [f"from={self.source}"]
        return " ".join([self.name, *(f"{key}={_shown(value)}" for key, value in self.settings.items()), *part])

    def build(self, model: nn.Module, seed: int, batch_size: int, **more: Any) -> Attack:
        """Construct the attack on `model`; `more` overrides its settings."""
        arguments: dict[str, Any] = {**self.settings, "seed": seed + self.seed, "batch_size": batch_size, **more}
        if self.gradient is not None:
            arguments["gradient"] = self.gradient
        if "epsilon" not in self.kind.fixed:
            arguments["epsilon"] = self.epsilon
        return self.kind(model, **arguments)


@dataclasses.dataclass(frozen=True)
class Measurement:
    """Accuracy of a network under one attack at one epsilon. Accuracies are in percent.

    Attributes:
        name, label, gradient, epsilon, purpose, source, on_twin: see `Planned`.
        role: part that the attack plays, see `biotorch.robustness.attacks.base`.
        settings: every argument of the attack.
        n: number of images.
        clean_accuracy: share of the images that are classified as labelled without an attack.
        robust_accuracy: share of the images that are classified as labelled both without and under the attack.
        interval: 95 % interval of `robust_accuracy` (Wilson).
        robust: one character per image, 1 if it withstands the attack and 0 if not.
        rejected: one character per image, 1 if its adversarial example is rejected; None without a reject class.
        queries: forward passes per image: mean, largest number and sum.
        blind: number of correctly classified images at which a gradient was zero everywhere or not finite.
        rising: share of the whole rise of the loss that fell into the last quarter of the steps, over the images that
            withstand; None if no image withstands or the attack has no steps.
        seconds: duration of the attack.
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
    role: Role = "black box"
    on_twin: bool = False
    rejected: str | None = None
    source: str | None = None

    @classmethod
    def of(
        cls,
        planned: Planned,
        attack: Attack,
        outcome: Outcome,
        seconds: float,
        identity: str,
        rejected: Tensor | None = None,
    ) -> Measurement:
        """Measurement from the outcome of an attack, and from the adversarial examples (n,) that are rejected."""
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
            _text(outcome.robust),
            {"mean": float(queries.mean()), "max": float(queries.max()), "total": float(queries.sum())},
            int((outcome.blind & outcome.clean).sum()),
            _late_rise(outcome),
            seconds,
            identity,
            planned.kind.role,
            planned.on_twin,
            None if rejected is None else _text(rejected),
            planned.source,
        )

    def for_plan(self, planned: Planned) -> Measurement:
        """Measurement with what the plan says of it, which may differ from when it was stored."""
        return dataclasses.replace(
            self,
            name=planned.name,
            label=planned.label,
            purpose=planned.purpose,
            role=planned.kind.role,
            on_twin=planned.on_twin,
            source=planned.source,
        )

    @property
    def withstands(self) -> Tensor:
        """(n,) bool, whether each image withstands the attack."""
        return _bits(self.robust)

    @property
    def accepted(self) -> Tensor:
        """(n,) bool, whether each image withstands the attack without being rejected."""
        return self.withstands if self.rejected is None else self.withstands & ~_bits(self.rejected)

    def to_json(self) -> dict[str, Any]:
        """Measurement as plain values, for JSON."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {"format": FORMAT, "attack": values.pop("name"), **values, "interval": list(self.interval)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Measurement:
        """Inverse of `to_json`. Raises KeyError, TypeError or ValueError if the values are no measurement."""
        if values["format"] != FORMAT:
            raise ValueError(f"format {values['format']!r}, not {FORMAT}")
        found = {"name": values["attack"]}
        for field in dataclasses.fields(cls)[1:]:
            if field.name in values or field.default is dataclasses.MISSING:
                found[field.name] = values[field.name]
        return cls(**{**found, "interval": tuple(values["interval"])})


def _text(bits: Tensor) -> str:
    return "".join("1" if each else "0" for each in bits.tolist())


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
