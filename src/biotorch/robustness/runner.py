"""The attacks of a study on one network and one set of images; what is on disk is not measured again."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from biotorch import _files, _seeding
from biotorch._files import state_hash
from biotorch.robustness.attacks.attempt import Attempt, cross_entropy
from biotorch.robustness.attacks.base import Attack, unseen
from biotorch.robustness.attacks.gradient import EOTPGD, PGD
from biotorch.robustness.evidence import NOISE
from biotorch.robustness.measurement import Measurement, Planned
from biotorch.robustness.plan import two_gradients


class Store:
    """The measurements in a folder; without a folder, nothing is kept."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            _files.remove_unfinished(folder)

    def get(self, planned: Planned, identity: str) -> Measurement | None:
        """The measurement, if it is there.

        Warns:
            UserWarning: its file is damaged or of another version; it is measured again.
        """
        path = self._path(planned, identity)
        if path is None or not path.is_file():
            return None
        try:
            found = Measurement.from_json(json.loads(path.read_text()))
        except (ValueError, KeyError, TypeError) as error:  # json's errors are ValueErrors
            warnings.warn(f"{path} is damaged or of another version ({error}): measured again", stacklevel=2)
            return None
        return found if found.identity == identity else None

    def put(self, planned: Planned, measurement: Measurement) -> None:
        """Keep a measurement: the whole of it or nothing."""
        path = self._path(planned, measurement.identity)
        if path is not None:
            _files.write_text(path, json.dumps(measurement.to_json(), indent=1, allow_nan=False) + "\n")

    def _path(self, planned: Planned, identity: str) -> Path | None:
        if self.folder is None:
            return None
        words = [planned.label, planned.gradient or "", f"epsilon={planned.epsilon:.4g}", identity[:8]]
        return self.folder / (re.sub(r"[^\w.=]+", "-", " ".join(filter(None, words))) + ".json")


class Display:
    """What a study of robustness shows while it goes on; this one shows nothing."""

    def planned(self, attacks: Sequence[Planned], seconds: float) -> None:
        """What is left to run, and how long it takes at most."""

    def attack(self, attack: Planned, images: int) -> None:
        """An attack on so many images begins."""

    def batch(self, done: int) -> None:
        """So many of its images are done."""

    def measured(self, measurement: Measurement) -> None:
        """An attack is done, or was found in the folder."""


class Runner:
    """Runs what is planned on one network and one set of images."""

    def __init__(
        self,
        model: nn.Module,
        source: nn.Module | None,
        images: Tensor,
        labels: Tensor,
        seed: int,
        batch_size: int,
        store: Store,
        display: Display,
    ) -> None:
        self.model, self.source, self.images, self.labels = model, source, images, labels
        self.seed, self.batch_size, self.store, self.display = seed, batch_size, store, display
        self.networks = {each: _identity_of(each) for each in (model, source) if each is not None}
        self.data: dict[int, str] = {}
        counts = labels.bincount().double()
        self.guessing = 100 * float(counts.max() / counts.sum())

    def first_look(self) -> None:
        """What is known without an attack: clean predictions, determinism, both gradients, and how long passes take."""
        parts = [self._look(start) for start in range(0, len(self.images), self.batch_size)]
        self.clean = torch.cat([part[0] for part in parts])
        cosines = torch.cat([part[1] for part in parts])[self.clean]
        self.cosine = float(cosines.mean()) if len(cosines) else math.nan
        self.spread = max(part[2] for part in parts)
        self.probabilities = all(part[3] for part in parts)
        self.not_numbers = sum(part[4] for part in parts)

    def _look(self, start: int) -> tuple[Tensor, Tensor, float, bool, int]:
        part = slice(start, start + self.batch_size)
        with unseen(self.model):
            device = next((each.device for each in self.model.parameters()), self.images.device)
            images, labels = self.images[part].to(device), self.labels[part].to(device)
            attempt = Attempt(self.model, images, labels, _seeding.generator(self.seed))
            everyone = torch.arange(len(images), device=device)
            begin = time.perf_counter()
            with torch.no_grad():
                again = attempt.outputs(images, everyone)
            forward = time.perf_counter() - begin
            true, _, _ = attempt.gradient(images, everyone, cross_entropy, "true")
            both = time.perf_counter() - begin - forward
            cosine = torch.ones(len(images))
            if two_gradients(self.model):
                fed_back, _, _ = attempt.gradient(images, everyone, cross_entropy, "feedback")
                cosine = F.cosine_similarity(true.flatten(1).double(), fed_back.flatten(1).double()).float().cpu()
        if start == 0:
            self.pass_seconds = forward / len(images), max(both - forward, 0.0) / len(images)
        outputs = attempt.clean_outputs
        sums_to_one = bool(((outputs.sum(1) - 1).abs() < 1e-4).all() and (outputs >= 0).all())
        not_numbers, numbers = outputs.isnan().any(1), (outputs - again).nan_to_num(0, 0, 0)
        return attempt.clean.cpu(), cosine, float(numbers.abs().max()), sums_to_one, int(not_numbers.sum())

    def run(self, planned: Sequence[Planned]) -> list[Measurement]:
        """The measurements, from the store where they are there."""
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
        """What the store has of it, under the name and for the purpose that it has here."""
        found = self.store.get(planned, self._identity(planned))
        if found is None:
            return None
        return dataclasses.replace(found, name=planned.name, label=planned.label, purpose=planned.purpose)

    def _measure(self, planned: Planned) -> Measurement:
        attack = self._attack(planned)
        images, labels = self.images[: planned.images], self.labels[: planned.images]
        self.display.attack(planned, len(images))
        begin = time.perf_counter()
        outcome = attack.run(images, labels, self.display.batch)
        seconds = time.perf_counter() - begin
        measurement = Measurement.of(planned, attack, outcome, seconds, self._identity(planned))
        self.store.put(planned, measurement)
        return measurement

    def _attack(self, planned: Planned) -> Attack:
        if planned.name == "transfer_to":
            return planned.build(self._source, self.seed, self.batch_size, source=self.model)
        if planned.name == "transfer":
            return planned.build(self.model, self.seed, self.batch_size, source=self.source)
        more: dict[str, Any] = {}
        if issubclass(planned.kind, PGD) and "stop_at_success" not in planned.settings:
            more["stop_at_success"] = self.spread <= NOISE
        if issubclass(planned.kind, EOTPGD) and self.spread == 0:  # k equal gradients: one says it all
            more["samples"] = 1
        return planned.build(self.model, self.seed, self.batch_size, **more)

    @property
    def _source(self) -> nn.Module:
        assert self.source is not None
        return self.source

    def _seconds(self, planned: Planned) -> float:
        """How long an attack takes at most: on every image that is classified correctly."""
        forward, backward = self._attack(planned).passes
        images = len(self.images[: planned.images])
        share = float(self.clean.double().mean())
        seconds: float = images * share * (forward * self.pass_seconds[0] + backward * self.pass_seconds[1])
        return seconds

    def _identity(self, planned: Planned) -> str:
        """A digest of network, images and settings."""
        images, labels = self.images[: planned.images], self.labels[: planned.images]
        networks = [*self.networks.values()] if planned.name.startswith("transfer") else [self.networks[self.model]]
        told = (planned.name, sorted(planned.settings.items()), planned.gradient, planned.epsilon, planned.seed)
        if len(images) not in self.data:
            self.data[len(images)] = state_hash({"images": images, "labels": labels})
        data = self.data[len(images)]
        return f"{_seeding.derive(*networks, data, *told, self.seed, self.batch_size):016x}"


def _identity_of(model: nn.Module) -> str:
    """A digest of a network: its tensors, those that it does not save included, and what it says of its modules."""
    tensors = {**model.state_dict(), **dict(model.named_parameters()), **dict(model.named_buffers())}
    told = re.sub(r" at 0x[0-9a-f]+", "", repr(model))  # a function's address differs between processes
    return f"{state_hash(tensors)} {told}"
