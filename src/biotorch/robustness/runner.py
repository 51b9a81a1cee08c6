"""Runner of a study's attacks on one network and one set of images; it reuses measurements found on disk."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from biotorch import _seeding
from biotorch._files import state_hash
from biotorch.robustness.attacks.attempt import outputs_of
from biotorch.robustness.attacks.base import Attack
from biotorch.robustness.attacks.gradient import EOTPGD
from biotorch.robustness.attacks.multi_targeted import MultiTargeted
from biotorch.robustness.identity import identity_of
from biotorch.robustness.look import Look
from biotorch.robustness.measurement import TWIN, Measurement, Planned
from biotorch.robustness.store import Store


class Display:
    """Receiver of a robustness study's progress; this base class shows nothing.

    Examples:
        >>> class Lines(biotorch.robustness.Display):
        ...     def measured(self, measurement):
        ...         print(measurement.name, measurement.gradient)
        >>> images, model = torch.rand(20, 1, 8, 8), nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        >>> data = images, model(images).argmax(1)
        >>> found = biotorch.robustness.study(model, data, attacks=["fgsm"], epsilons=[0.1], display=Lines())
        fgsm true
    """

    def planned(self, attacks: Sequence[Planned], seconds: float) -> None:
        """Show the attacks that are left to run, and how many seconds they take at most."""

    def attack(self, attack: Planned, images: int) -> None:
        """Show that an attack on `images` images begins."""

    def batch(self, done: int) -> None:
        """Show that `done` images of the current attack are finished."""

    def measured(self, measurement: Measurement) -> None:
        """Show the measurement of an attack that has finished or was found in the folder."""


class Runner:
    """Runs planned attacks on one network and one set of images.

    Attributes:
        sources: networks from which examples are transferred, by the names that planned attacks give as their source.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        abstain: int | None,
        seed: int,
        batch_size: int,
        store: Store,
        display: Display,
        look: Look,
    ) -> None:
        self.model, self.images, self.labels, self.look = model, images, labels, look
        self.abstain, self.seed, self.batch_size, self.store, self.display = abstain, seed, batch_size, store, display
        self.sources: dict[str, nn.Module] = {}
        self.networks: dict[nn.Module, str] = {}
        self.data: dict[int, str] = {}

    def run(self, planned: Sequence[Planned]) -> list[Measurement]:
        """Measurements of the planned attacks, in their order; those in the store are reused."""
        known = {each: self._known(each) for each in planned}
        left = [each for each in planned if known[each] is None]
        self.display.planned(left, sum(map(self._seconds, left)))
        measurements = []
        for each in planned:
            found = known[each] or self._measure(each)
            self.display.measured(found)
            measurements.append(found)
        return measurements

    def _known(self, planned: Planned) -> Measurement | None:
        """Stored measurement, with the name, label and purpose that the attack has in this plan; None if not stored."""
        found = self.store.get(_file_of(planned), self._identity(planned), Measurement.from_json)
        return None if found is None else found.for_plan(planned)

    def _measure(self, planned: Planned) -> Measurement:
        attack = self._attack(planned)
        attack.warns = False  # of useless gradients, for which the study has a check
        images, labels = self.images[: planned.images], self.labels[: planned.images]
        self.display.attack(planned, len(images))
        begin = time.perf_counter()
        outcome = attack.run(images, labels, self.display.batch)
        seconds = time.perf_counter() - begin
        rejected = None
        if self.abstain is not None and not planned.on_twin:
            [outputs] = outputs_of([self.model], outcome.adversarial, labels, self.batch_size)
            rejected = outputs.argmax(1) == self.abstain
        measurement = Measurement.of(planned, attack, outcome, seconds, self._identity(planned), rejected)
        self.store.put(_file_of(planned), measurement.identity, measurement.to_json())
        return measurement

    def _attack(self, planned: Planned) -> Attack:
        if planned.on_twin:
            return planned.build(self.sources[TWIN], self.seed, self.batch_size, source=self.model)
        more: dict[str, Any] = {} if self.abstain is None else {"abstain": self.abstain}
        if planned.source is not None:
            more["source"] = self.sources[planned.source]
        if issubclass(planned.kind, MultiTargeted):
            more["first"] = sorted(set(self.labels.tolist()))
        if issubclass(planned.kind, EOTPGD) and not self.look.noisy:  # all k gradients would be equal
            more["samples"] = 1
        return planned.build(self.model, self.seed, self.batch_size, **more)

    def _seconds(self, planned: Planned) -> float:
        """Upper bound of an attack's duration: all of its passes on every image that is classified correctly."""
        forward, backward = self._attack(planned).passes
        images = len(self.images[: planned.images])
        share = float(self.look.clean.double().mean())
        each = self.look.seconds
        seconds: float = images * share * (forward * each[0] + backward * each[1])
        return seconds

    def _identity(self, planned: Planned) -> str:
        """Digest of network, images and settings."""
        images, labels = self.images[: planned.images], self.labels[: planned.images]
        source = TWIN if planned.on_twin else planned.source
        networks = [self.model, *([] if source is None else [self.sources[source]])]
        digests = [self._digest(each) for each in networks]
        told: tuple[Any, ...] = (
            planned.name,
            sorted(planned.settings.items()),
            planned.gradient,
            planned.epsilon,
            planned.seed,
        )
        told += () if self.abstain is None else (self.abstain,)
        edition = [planned.kind.edition] if planned.kind.edition > 1 else []  # the first had none in its digest
        if len(images) not in self.data:
            self.data[len(images)] = state_hash({"images": images, "labels": labels})
        data = self.data[len(images)]
        return f"{_seeding.derive(*digests, data, *told, *edition, self.seed, self.batch_size):016x}"

    def _digest(self, network: nn.Module) -> str:
        if network not in self.networks:
            self.networks[network] = identity_of(network)
        return self.networks[network]


def _file_of(planned: Planned) -> str:
    """Name of the file of a planned attack, without its digest."""
    return " ".join(filter(None, [planned.label, planned.gradient, f"epsilon={planned.epsilon:.4g}"]))
