"""`convert`: put a network under a learning rule, in place."""

from __future__ import annotations

import fnmatch
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn

from biotorch import seeding
from biotorch.autograd import Output
from biotorch.layers import LAYER_TYPES, FeedbackLayer
from biotorch.module.choice import Choice, Chooser
from biotorch.module.shortcuts import install_cuts, remove_cuts
from biotorch.module.survey import Entry, survey
from biotorch.names import unknown
from biotorch.rules import DirectRule, Rule

_Module = TypeVar("_Module", bound=nn.Module)


class ConversionError(ValueError):
    """A network cannot be converted as asked; the message lists every problem. The network is unchanged."""


class ConversionWarning(UserWarning):
    """A conversion did less than it seems: layers stay on backpropagation, or no shortcut was cut."""


class _Planned(NamedTuple):
    name: str
    layer: nn.Module
    rule: Rule


def convert(
    model: _Module,
    rule: Choice,
    *,
    copy_weights: bool = True,
    output: str | Sequence[str] | None = None,
    output_dim: int | None = None,
    strict: bool = False,
    seed: int | None = None,
    **options: Any,
) -> _Module:
    """Put `model` under a learning rule, in place, and return it.

    Each layer keeps its identity: the class of the object changes to the feedback version of exactly
    its torch type (it stays an instance of that), so parents, shared layers, tied weights, hooks,
    optimizers, device, dtype, memory format and flags are untouched. Layers with the same W get the
    same B. Converting again replaces the rule. The global random state is neither read nor advanced.

    Args:
        model: any module, also a single layer.
        rule: a rule's name, a `Rule`, a mapping of layer-name patterns to rules (first match wins:
            `{"fc": "backpropagation", "*": "fa"}`), or a function (name, layer) -> rule. None as a
            layer's rule leaves it as it is.
        copy_weights: keep W and b; if False, draw them again by the rule's `init`.
        output: name of the output layer, whose error a direct rule broadcasts, or names of all of them
            where there are several heads. Default: the last feedback layer of `named_modules`.
        output_dim: size of the output, only to be checked against the model.
        strict: raise where a layer would be left on backpropagation, instead of warning.
        seed: of B (and of W with `copy_weights=False`), together with the layer's name: two networks
            of one architecture and seed get the same B. Default: `torch.initial_seed()`.
        **options: options of the rule; with several rules each takes those it knows.

    Raises:
        ConversionError: listing all problems: nothing to convert, unknown rules, options, patterns or
            output layers, an output that cannot be inferred, an `output_dim` the model contradicts.
        TypeError: `model` is not a module, or `rule` nothing of the above.

    Warns:
        ConversionWarning: layers stay on backpropagation, or there was no shortcut to cut.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"convert takes a torch.nn.Module, got {type(model).__name__}")
    chooser = Chooser(rule, dict(options))
    entries = survey(model)
    candidates = [entry for entry in entries if entry.kind in ("feedback", "convertible")]
    chosen = [(entry, chooser.rule_for(entry.name, entry.module)) for entry in candidates]
    planned = [_Planned(entry.name, entry.module, rule) for entry, rule in chosen if rule is not None]
    chooser.finish([entry.name for entry in candidates])

    problems = list(chooser.problems)
    if not candidates:
        problems.append(_nothing_to_convert(entries))
    elif not planned and not problems:
        problems.append("no layer was given a rule: the network would be unchanged")
    left = _left(entries, chooser.unmatched) if any(p.rule.name != "backpropagation" for p in planned) else []
    if strict and left:
        problems.append(_left_on_backprop(left))
    problems += _unmatched_blocks(model, planned)
    outputs = _find_outputs(entries, planned, output, output_dim, problems)
    if problems:
        raise ConversionError(_joined(problems))
    if left:
        warnings.warn(_left_on_backprop(left), ConversionWarning, stacklevel=2)
    _apply(model, planned, outputs, copy_weights, torch.initial_seed() if seed is None else seed)
    return model


def _left(entries: list[Entry], unmatched: set[str]) -> list[Entry]:
    """The layers that will transport their weights although nobody decided so."""
    forgotten = "no pattern matches it; give it None, or 'backpropagation', to leave it knowingly"
    return [
        entry if entry.kind == "left" else entry._replace(reason=forgotten)
        for entry in entries
        if entry.kind == "left" or (entry.kind == "convertible" and entry.name in unmatched)
    ]


def _unmatched_blocks(model: nn.Module, planned: list[_Planned]) -> list[str]:
    names = [name for name, _ in model.named_modules() if name]
    patterns = {p for item in planned if isinstance(item.rule, DirectRule) for p in item.rule.blocks}
    return [str(unknown("block pattern", p, names)) for p in sorted(patterns) if not fnmatch.filter(names, p)]


def _find_outputs(
    entries: list[Entry],
    planned: list[_Planned],
    output: str | Sequence[str] | None,
    output_dim: int | None,
    problems: list[str],
) -> dict[int, Output]:
    """The output layers by id, with the rows of B that each addresses; empty without a direct rule.

    Layers that keep the rule of an earlier conversion count too.
    """
    given = {item.name for item in planned}
    ruled = {entry.name: entry.module for entry in entries if entry.kind == "feedback" or entry.name in given}
    kept = {name: module for name, module in ruled.items() if name not in given and isinstance(module, FeedbackLayer)}
    kept_direct = {name: layer for name, layer in kept.items() if layer.rule.direct}
    direct = bool(kept_direct) or any(item.rule.direct for item in planned)
    if not direct and output is None and output_dim is None:
        return {}
    names = _output_names(entries, ruled, output, problems)
    outputs, start = {}, 0
    for name in names:
        size = _output_size(ruled[name])
        outputs[id(ruled[name])] = Output(start, start + size)
        start += size
    if output_dim is not None and outputs and output_dim != start:
        problems.append(f"output_dim={output_dim}, but the output ({', '.join(names)}) has {start}")
    for name, layer in kept_direct.items():
        if outputs and layer.feedback is not None and len(layer.feedback) != start:
            problems.append(
                f"{name} keeps a B for {len(layer.feedback)} outputs, but the output ({', '.join(names)}) has {start}: "
                "convert it again, too"
            )
    return outputs if direct else {}


def _output_names(
    entries: list[Entry], ruled: dict[str, nn.Module], output: str | Sequence[str] | None, problems: list[str]
) -> list[str]:
    """The output layers asked for, or the network's last layer; what is wrong with them goes to `problems`."""
    cure = "Name the output layer, a layer with a rule, as output=...; 'backpropagation' is a rule, too."
    if output is None:
        layers = [entry for entry in entries if entry.kind != "local"]
        if not layers:
            return []  # told already: there is nothing to convert
        last = layers[-1]
        if last.name in ruled:
            return [last.name]
        why = last.reason or "it was given no rule"
        problems.append(f"the output layer cannot be inferred: the last layer is {last.name!r}, but {why}. {cure}")
        return []
    names = [output] if isinstance(output, str) else output
    if not isinstance(names, Sequence) or not names or not all(isinstance(name, str) for name in names):
        problems.append(f"output={output!r} is neither a layer's name nor a list of names")
        return []
    strange = [name for name in names if name not in ruled]
    problems += [f"{unknown('output layer', name, ruled)} {cure}" for name in strange]
    return [name for name in dict.fromkeys(names) if name in ruled]


def _output_size(layer: nn.Module) -> int:
    if isinstance(layer, FeedbackLayer):
        return layer.output_size
    size = LAYER_TYPES[type(layer)].output_size
    return size.fget(layer)  # type: ignore[attr-defined, no-any-return]


def _apply(
    model: nn.Module, planned: list[_Planned], outputs: dict[int, Output], copy_weights: bool, seed: int
) -> None:
    layers: list[tuple[str, FeedbackLayer, Rule]] = []
    for name, layer, rule in planned:
        if not isinstance(layer, FeedbackLayer):
            layer.__class__ = LAYER_TYPES[type(layer)]
            assert isinstance(layer, FeedbackLayer)
        layer.label = name
        layers.append((name, layer, rule))
    if not copy_weights:
        drawn: set[int] = set()  # tied weights are drawn once, before any B is made of them
        for name, layer, rule in layers:
            if id(layer.weight) not in drawn:
                drawn.add(id(layer.weight))
                layer.initialise_weights(rule, seeding.derive(seed, name))
    n_out = max((output.stop for output in outputs.values()), default=None)
    first_with: dict[tuple[Any, ...], FeedbackLayer] = {}  # layers that share W share B
    for name, layer, rule in layers:
        # A convolution and a transposed one may share W, but not a direct rule's B: it has another shape.
        shape = layer.projection_shape if rule.direct else None
        twin = first_with.setdefault((id(layer.weight), rule, shape), layer)
        if twin is layer:
            layer.set_rule(rule, seeding.derive(seed, name), n_out=n_out)
        else:
            layer.set_rule(rule, twin.feedback_seed, n_out=n_out, shared=twin.feedback)
    _connect(model, outputs)


def _connect(model: nn.Module, outputs: dict[int, Output]) -> None:
    """Mark the output layers and cut the shortcuts that the rules of all layers ask for."""
    remove_cuts(model)
    layers = [module for module in model.modules() if isinstance(module, FeedbackLayer)]
    for layer in layers:
        layer.output = outputs.get(id(layer))
    cutting = [layer.rule for layer in layers if isinstance(layer.rule, DirectRule) and layer.rule.shortcuts == "cut"]
    if cutting and not install_cuts(model, sorted({pattern for rule in cutting for pattern in rule.blocks})):
        warnings.warn(
            "shortcuts='cut' found no residual block to cut: if there are any, name them with "
            "blocks=['pattern', ...]; biotorch.audit shows whether gradient passes the feedback",
            ConversionWarning,
            stacklevel=4,
        )


def _nothing_to_convert(entries: list[Entry]) -> str:
    types = ", ".join(layer_type.__name__ for layer_type in LAYER_TYPES)
    left = "".join(f"\n    {_describe(entry)}" for entry in entries if entry.kind == "left")
    return f"no layer to convert: none is exactly one of {types}{left}"


def _left_on_backprop(left: list[Entry]) -> str:
    lines = "".join(f"\n    {_describe(entry)}" for entry in left)
    return f"{len(left)} layer(s) stay on backpropagation:{lines}"


def _describe(entry: Entry) -> str:
    return f"{entry.name or '(root)'} ({type(entry.module).__name__}): {entry.reason}"


def _joined(problems: list[str]) -> str:
    if len(problems) == 1:
        return problems[0]
    return f"{len(problems)} problems:" + "".join(f"\n  - {problem}" for problem in problems)
