"""The units of an audit: modules with a weight, and the groups of parameters that make up each weight."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import NamedTuple

from torch import nn

from biotorch.auditing.replay import Recording
from biotorch.conversion.survey import Entry, is_known_local, owned_modules, weight_matrices
from biotorch.layers import FeedbackLayer


class Unit(NamedTuple):
    """A module with a weight.

    Attributes:
        name: its dotted name.
        reason: its rule, or the reason why it is on backpropagation, or cannot be judged.
        groups: sets of parameters (keys) that are tested together.
        computing: those of the parameters from which a weight is computed. Their own gradients depend on each other.
        presumed_local: whether names and shapes say that it is local, so that it is shown only if the test contradicts.
        opaque: whether it returns what the audit could not follow.
    """

    name: str
    reason: str
    groups: list[frozenset[int]]
    computing: frozenset[int]
    presumed_local: bool = False
    opaque: bool = False


def units_of(
    entries: Mapping[str, Entry],
    recording: Recording,
    names: Mapping[nn.Module, str],
    keys: Mapping[int, int],
    layers: Container[nn.Module],
) -> list[Unit]:
    """The units of a recorded pass, in the order of `named_modules`: known layers, and whatever else used a weight.

    Args:
        entries: the modules with parameters.
        recording: the recorded pass.
        names: the name of each module.
        keys: the key of each parameter, by its id.
        layers: the layers of a type that has a feedback version.
    """
    homes = _homes(entries, names)
    owners: dict[int, list[str]] = {}
    for module, name in names.items():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners.setdefault(keys[id(parameter)], []).append(homes.get(module, name))
    groups: dict[str, set[frozenset[int]]] = {}
    computing: dict[str, set[int]] = {}
    for entry in entries.values():
        if entry.module in layers:
            groups[entry.name] = {frozenset(keys[id(matrix)] for matrix in weight_matrices(entry.module).values())}
    for origin, place in recording.meetings.found:
        here = homes.get(place, names.get(place, "")) if place is not None else ""
        holders = {name for key in origin.roots for name in owners[key]}
        if here in holders or origin.computed:
            name = here if here in holders or len(holders) != 1 else next(iter(holders))
        else:
            name = min(holders, key=lambda each: (each in entries and is_known_local(entries[each].module), each))
        groups.setdefault(name, set()).add(origin.roots)
        if origin.computed:
            computing.setdefault(name, set()).update(origin.roots)
    opaque = {homes.get(module, names.get(module, "")) for module in recording.opaque}
    found = []
    for name in sorted({*groups, *opaque}, key=list(names.values()).index):
        sets, own = groups.get(name, set()), frozenset(computing.get(name, ()))
        direct = frozenset({key for each in sets for key in each} - own)
        found.append(
            Unit(
                name,
                _opaque_reason(names, name) if name in opaque else _reason(entries.get(name)),
                [group for group in (direct, *(each for each in sets if each & own)) if group],
                own,
                presumed_local=name not in entries or entries[name].kind == "local",
                opaque=name in opaque,
            )
        )
    return found


def _homes(entries: Mapping[str, Entry], names: Mapping[nn.Module, str]) -> dict[nn.Module | None, str]:
    """The name of the module to which each part belongs: what a layer reads itself, computes its weight or lists it."""
    homes: dict[nn.Module | None, str] = {
        module: name.rpartition(".")[0]
        for module, name in names.items()
        if isinstance(module, nn.ParameterList | nn.ParameterDict)
    }
    for entry in entries.values():
        parts = [entry.module, *owned_modules(entry.module)]
        for part in list(parts):
            if hasattr(part, "parametrizations"):
                parts += part.get_submodule("parametrizations").modules()
        if not isinstance(entry.module, nn.ParameterList | nn.ParameterDict):
            homes.update(dict.fromkeys(parts, entry.name))
    return homes


def _reason(entry: Entry | None) -> str:
    if entry is None or entry.kind == "local":
        return "parameters multiplied with activations"
    if isinstance(entry.module, FeedbackLayer):
        return f"rule {entry.module.rule.name}"
    return entry.reason.partition("; biotorch.audit")[0] or "plain PyTorch, not converted"


def _opaque_reason(names: Mapping[nn.Module, str], name: str) -> str:
    kind = next(type(module).__name__ for module, own in names.items() if own == name)
    return f"the audit cannot follow what {kind} computes, so it counts as a leak"
