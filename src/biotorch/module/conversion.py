"""`convert`: put a network under a learning rule, in place."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

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
    """Layers that transport weights were left on backpropagation."""


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
        seed: of B (and of W with `copy_weights=False`). Default: `torch.initial_seed()`.
        **options: options of the rule; with several rules each takes those it knows.

    Raises:
        ConversionError: listing all problems: nothing to convert, unknown rules, options, patterns or
            output layers, an output that cannot be inferred, an `output_dim` the model contradicts.
        TypeError: `model` is not a module.
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
    outputs = _find_outputs(candidates, planned, output, output_dim, problems)
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


def _find_outputs(
    candidates: list[Entry],
    planned: list[_Planned],
    output: str | Sequence[str] | None,
    output_dim: int | None,
    problems: list[str],
) -> dict[int, Output]:
    """The output layers by id, with the rows of B that each addresses; empty without a direct rule.

    Layers that keep the rule of an earlier conversion count too.
    """
    given = {item.name for item in planned}
    kept = [entry for entry in candidates if entry.kind == "feedback" and entry.name not in given]
    ruled = {entry.name: entry.module for entry in candidates if entry.kind == "feedback" or entry.name in given}
    kept_direct = [e for e in kept if isinstance(e.module, FeedbackLayer) and e.module.rule.direct]
    if not kept_direct and not any(item.rule.direct for item in planned):
        return {}
    names = [candidates[-1].name] if output is None else [output] if isinstance(output, str) else list(output)
    outputs, start = {}, 0
    for name in names:
        if name not in ruled:
            inferred = "(the network's last layer, inferred) " if output is None else ""
            problems.append(
                f"{unknown('output layer', name, ruled)} {inferred}An output layer must have a rule; "
                "give it 'backpropagation' to have it learn by its own gradient."
            )
            continue
        size = _output_size(ruled[name])
        outputs[id(ruled[name])] = Output(start, start + size)
        start += size
    if output_dim is not None and outputs and output_dim != start:
        problems.append(f"output_dim={output_dim}, but the output ({', '.join(names)}) has {start}")
    for entry in kept_direct:
        feedback = entry.module.feedback
        if outputs and isinstance(feedback, Tensor) and len(feedback) != start:
            problems.append(
                f"{entry.name} keeps a B for {len(feedback)} outputs, but the output ({', '.join(names)}) has {start}: "
                "convert it again, too"
            )
    return outputs


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
        for name, layer, rule in {id(layer.weight): (name, layer, rule) for name, layer, rule in layers[::-1]}.values():
            layer.initialise_weights(rule, seeding.derive(seed, name))
    n_out = max((output.stop for output in outputs.values()), default=None)
    first_with: dict[tuple[int, Rule], FeedbackLayer] = {}  # layers that share W share B
    for name, layer, rule in layers:
        twin = first_with.setdefault((id(layer.weight), rule), layer)
        if twin is layer:
            layer.set_rule(rule, seeding.derive(seed, name), n_out=n_out)
        else:
            layer.set_rule(rule, twin.feedback_seed, n_out=n_out, shared=twin.feedback)
    _connect(model, outputs)


def _connect(model: nn.Module, outputs: dict[int, Output]) -> None:
    """Mark the output layers and cut the shortcuts that the rules of all layers ask for."""
    remove_cuts(model)
    patterns: dict[str, None] = {}
    for layer in model.modules():
        if isinstance(layer, FeedbackLayer):
            layer.output = outputs.get(id(layer))
            if isinstance(layer.rule, DirectRule) and layer.rule.shortcuts == "cut":
                patterns.update(dict.fromkeys(layer.rule.blocks))
    install_cuts(model, list(patterns))


def _nothing_to_convert(entries: list[Entry]) -> str:
    types = ", ".join(layer_type.__name__ for layer_type in LAYER_TYPES)
    left = "".join(f"\n    {_describe(entry)}" for entry in entries if entry.kind == "left")
    return f"no layer to convert: none is exactly one of {types}{left}"


def _left_on_backprop(left: list[Entry]) -> str:
    lines = "".join(f"\n    {_describe(entry)}" for entry in left)
    return f"{len(left)} layer(s) stay on backpropagation and transport their weights:{lines}"


def _describe(entry: Entry) -> str:
    return f"{entry.name or '(root)'} ({type(entry.module).__name__}): {entry.reason}"


def _joined(problems: list[str]) -> str:
    if len(problems) == 1:
        return problems[0]
    return f"{len(problems)} problems:" + "".join(f"\n  - {problem}" for problem in problems)
