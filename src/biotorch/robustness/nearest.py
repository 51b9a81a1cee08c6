"""Smallest perturbations of a network's images, found by several attacks and kept on disk."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from biotorch import _seeding
from biotorch._files import state_hash
from biotorch.robustness.attacks.attempt import Gradient
from biotorch.robustness.attacks.base import gradients_of
from biotorch.robustness.attacks.boundary import FAB, DeepFool
from biotorch.robustness.attacks.norms import Norm
from biotorch.robustness.attacks.smallest import CW, Minimal, Smallest
from biotorch.robustness.identity import identity_of
from biotorch.robustness.store import Store

#: Attacks that look for the smallest perturbation in each norm, by their names in a configuration.
SEARCHES: dict[Norm, dict[str, type[Minimal]]] = {
    "linf": {"deepfool": DeepFool, "fab": FAB},
    "l2": {"deepfool": DeepFool, "fab": FAB, "cw": CW},
    "l1": {"deepfool": DeepFool, "fab": FAB},
}


@dataclasses.dataclass(frozen=True)
class Distances:
    """Distances that one attack has found along one gradient.

    Attributes:
        attack: name of the attack.
        gradient: gradient that it followed, `true` or `feedback`.
        norm: norm of the distances.
        distances: one per image: 0 if it is misclassified without an attack, None if no perturbation was found.
        median: median over the images that are classified as labelled; None if it is infinite or there is none.
        queries: mean number of forward passes per image.
        seconds: duration of the attack.
        identity: digest of network, images and settings.
    """

    attack: str
    gradient: Gradient
    norm: Norm
    distances: Sequence[float | None]
    median: float | None
    queries: float
    seconds: float
    identity: str

    @classmethod
    def of(cls, attack: str, search: Minimal, found: Smallest, seconds: float, identity: str) -> Distances:
        """Distances of a search's result, as plain values."""
        return cls(
            attack,
            search.gradient,
            found.norm,
            [each if math.isfinite(each) else None for each in found.distances.double().tolist()],
            found.median if math.isfinite(found.median) else None,
            float(found.queries.double().mean()),
            seconds,
            identity,
        )

    def to_json(self) -> dict[str, Any]:
        """Distances as plain values, for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Distances:
        """Inverse of `to_json`. Raises KeyError or TypeError if the values are no distances."""
        return cls(**{field.name: values[field.name] for field in dataclasses.fields(cls)})


def find_smallest(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    norm: Norm = "linf",
    seed: int = 0,
    batch_size: int = 250,
    folder: Path,
) -> list[Distances]:
    """Smallest perturbations by each attack of `SEARCHES`, along both gradients if the network has two.

    Args:
        model: maps images in [0, 1] to outputs (n, C).
        images, labels: (n, ...) in [0, 1] and (n,) int64.
        norm: norm of the distances.
        seed: seed of all randomness.
        batch_size: number of images attacked at once.
        folder: folder for the results, one file each; the next call with the same folder reuses them.

    Warns:
        UserWarning: a stored result is damaged, so its attack runs again.
    """
    common = identity_of(model), state_hash({"images": images, "labels": labels})
    store, found = Store(folder), []
    for name, kind in SEARCHES[norm].items():
        for gradient in gradients_of(model):
            search = kind(model, gradient=gradient, norm=norm, seed=seed, batch_size=batch_size)
            identity = f"{_seeding.derive(*common, repr(search), kind.edition):016x}"
            file = f"{name} {gradient} epsilon=smallest"
            stored = store.get(file, identity, Distances.from_json)
            if stored is None:
                begin = time.perf_counter()
                result = search.smallest(images, labels)
                stored = Distances.of(name, search, result, time.perf_counter() - begin, identity)
                store.put(file, identity, stored.to_json())
            found.append(stored)
    return found


def nearest(found: Sequence[Distances]) -> Tensor:
    """Smallest distance (n,) of each image over several attacks, ∞ if none was found."""
    return torch.tensor([[math.inf if one is None else one for one in each.distances] for each in found]).amin(0)
