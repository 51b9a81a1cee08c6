"""Runner of a study's attacks on one network and one set of images; it reuses measurements found on disk."""

from __future__ import annotations

import contextlib
import functools
import re
import time
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from biotorch import _seeding
from biotorch._files import state_hash
from biotorch.robustness.attacks.attempt import Attempt
from biotorch.robustness.attacks.base import Attack, Outcome, unseen
from biotorch.robustness.attacks.gradient import EOTPGD
from biotorch.robustness.attacks.inputs import device_of
from biotorch.robustness.attacks.multi_targeted import MultiTargeted
from biotorch.robustness.measurement import TWIN, Measurement, Planned
from biotorch.robustness.observations import Look
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
        rejected = None if self.abstain is None or planned.on_twin else self._rejected(outcome, self.abstain)
        measurement = Measurement.of(planned, attack, outcome, seconds, self._identity(planned), rejected)
        self.store.put(_file_of(planned), measurement.identity, measurement.to_json())
        return measurement

    def _rejected(self, outcome: Outcome, abstain: int) -> Tensor:
        """Whether each adversarial example is rejected: (n,) bool."""
        parts: list[Tensor] = []
        with unseen(self.model):
            for start in range(0, len(outcome.adversarial), self.batch_size):
                part = slice(start, start + self.batch_size)
                examples, labels = outcome.adversarial[part], self.labels[part]
                device = device_of(self.model, examples)
                attempt = Attempt(self.model, examples.to(device), labels.to(device), _seeding.generator(self.seed))
                parts.append(attempt.clean_outputs.argmax(1).eq(abstain).cpu())
        return torch.cat(parts)

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


def identity_of(model: nn.Module) -> str:
    """Digest of a network: its tensors, including those outside its state_dict, its repr, and what neither shows.

    The last are further entries of the state_dict (extra state, packed weights), and plain attributes and functions of
    its modules, such as a threshold. Of a function it takes the code and the values that it uses.
    """
    return _identity(model, {})


def _identity(model: nn.Module, seen: dict[int, Any]) -> str:
    seen |= {id(module): module for module in model.modules()}
    tensors = {**model.state_dict(), **dict(model.named_parameters()), **dict(model.named_buffers())}
    plain = {name: value for name, value in tensors.items() if isinstance(value, Tensor) and not _is_packed(value)}
    hidden = [f"{name} {_told(tensors[name], seen)}" for name in sorted(tensors.keys() - plain.keys())]
    for place, module in model.named_modules():
        attributes = {} if _tells_all(type(module)) else vars(module)
        hidden += [
            f"{place} {name} {_told(value, seen)}"
            for name, value in sorted(attributes.items())
            if name not in _OF_EVERY_MODULE
        ]
    told = re.sub(r" at 0x[0-9a-f]+", "", repr(model))  # a function's address differs between processes
    more = f" {_seeding.derive(*hidden):016x}" if hidden else ""
    return f"{state_hash(plain)} {told}{more}"


#: Attributes in which every module keeps its tensors, submodules, hooks and mode.
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


def _tells_all(kind: type[nn.Module]) -> bool:
    """Whether the repr of such a module shows its settings, as that of most layers of torch does, converted or not."""
    torchs = [each for each in kind.__mro__ if each.__module__.startswith("torch.nn.modules") and each is not nn.Module]
    shown = any("extra_repr" in vars(each) for each in torchs) and kind.__module__.startswith(("torch.", "biotorch."))
    return shown or kind.__module__.startswith("biotorch.models")


def _is_packed(tensor: Tensor) -> bool:
    return tensor.is_quantized or tensor.layout != torch.strided


def _told(value: Any, seen: dict[int, Any]) -> str:
    """Text of a value held by a module, equal in every process."""
    if hasattr(value, "__array__") and hasattr(value, "tolist") and not isinstance(value, Tensor):  # of NumPy
        value = value.tolist()
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | torch.dtype | torch.device):
        return repr(value)
    if isinstance(value, Tensor):
        dense = value.to_dense() if value.layout != torch.strided else value
        return state_hash({str(value.dtype): dense.dequantize() if dense.is_quantized else dense})
    if isinstance(value, tuple):
        return str([_told(each, seen) for each in value])
    if isinstance(value, set | frozenset):
        return str(sorted(_told(each, seen) for each in value))
    if id(value) in seen:
        return f"entry {list(seen).index(id(value))}"
    seen[id(value)] = value
    if isinstance(value, nn.Module):
        return _identity(value, seen)
    return f"{type(value).__module__}.{type(value).__qualname__} {_told(_parts(value), seen)}"


def _parts(value: Any) -> tuple[Any, ...]:
    """What determines an object: items, code, or attributes; nothing but its type for one that cannot be called."""
    if isinstance(value, list):
        return tuple(value)
    if isinstance(value, Mapping):
        return tuple(value.items())
    if isinstance(value, types.CodeType):
        return value.co_code, value.co_names, value.co_consts
    if isinstance(value, types.FunctionType):
        return value.__code__, value.__defaults__, value.__kwdefaults__, *_used(value)
    if isinstance(value, types.MethodType):
        return value.__func__, value.__self__
    if isinstance(value, functools.partial):
        return value.func, value.args, value.keywords
    if isinstance(value, type | types.ModuleType | types.BuiltinFunctionType):
        return (value.__name__,)
    return tuple(vars(value).items()) if callable(value) and hasattr(value, "__dict__") else ()


def _used(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """Values from outside that a function uses, by name; of a function of another file only its name."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # the variable has no value yet
            yield name, cell.cell_contents
    for name in _names_in(function.__code__):
        if name in function.__globals__:
            value = function.__globals__[name]
            elsewhere = isinstance(value, types.FunctionType) and value.__module__ != function.__module__
            yield name, value.__qualname__ if elsewhere else value


def _names_in(code: types.CodeType) -> list[str]:
    """Names that code and the functions defined in it look up."""
    inner = [name for each in code.co_consts if isinstance(each, types.CodeType) for name in _names_in(each)]
    return sorted({*code.co_names, *inner})
