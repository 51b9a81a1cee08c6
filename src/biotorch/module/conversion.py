"""`convert`: put a network under a learning rule, in place."""

from __future__ import annotations

import fnmatch
import warnings
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import nn

from biotorch.layers import LAYER_TYPES
from biotorch.module.choice import Choice, Chooser
from biotorch.module.feedback_forms import dense_sizes, with_points
from biotorch.module.installing import install
from biotorch.module.outputs import auxiliary_heads, find_outputs
from biotorch.module.plan import ConversionError, ConversionWarning, Planned
from biotorch.module.survey import Entry, survey
from biotorch.names import unknown
from biotorch.rules import DirectRule

_Module = TypeVar("_Module", bound=nn.Module)


def convert(
    model: _Module,
    rule: Choice,
    *,
    copy_weights: bool = True,
    output: str | Sequence[str] | None = None,
    output_dim: int | None = None,
    strict: bool = False,
    seed: int | None = None,
    inputs: Any = None,
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
            of one architecture and seed get the same B, and so do equal parts of one network that are converted
            one by one: convert the whole, or give each its own. Default: `torch.initial_seed()`.
        inputs: an example batch (a tensor, a tuple of arguments or a mapping of keyword arguments): the input
            size that `feedback="dense"` makes B for. The model is run on it once, in eval mode.
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
    planned = [Planned(entry.name, entry.module, rule) for entry, rule in chosen if rule is not None]
    chooser.finish([entry.name for entry in candidates])

    problems = list(chooser.problems)
    if not candidates:
        problems.append(_nothing_to_convert(entries))
    elif not planned and not problems:
        problems.append("no layer was given a rule: the network would be unchanged")
    left = _left(entries, chooser.unmatched) if any(p.rule.name != "backpropagation" for p in planned) else []
    if strict and left:
        problems.append(_left_on_backprop(left))
    problems += _unmatched_patterns(model, planned)
    planned = with_points(model, planned)
    outputs = find_outputs(entries, planned, output, auxiliary_heads(model), output_dim, problems)
    if problems:
        raise ConversionError(_joined(problems))
    dense = dense_sizes(model, planned, inputs)
    if left:
        warnings.warn(_left_on_backprop(left), ConversionWarning, stacklevel=2)
    install(model, planned, outputs, copy_weights, torch.initial_seed() if seed is None else seed, dense)
    return model


def _left(entries: list[Entry], unmatched: set[str]) -> list[Entry]:
    """The layers that will transport their weights although nobody decided so."""
    forgotten = "no pattern matches it; give it None, or 'backpropagation', to leave it knowingly"
    return [
        entry if entry.kind == "left" else entry._replace(reason=forgotten)
        for entry in entries
        if entry.kind == "left" or (entry.kind == "convertible" and entry.name in unmatched)
    ]


def _unmatched_patterns(model: nn.Module, planned: list[Planned]) -> list[str]:
    names = [name for name, _ in model.named_modules() if name]
    direct = {item.rule for item in planned if isinstance(item.rule, DirectRule)}
    given = {("block pattern", pattern) for rule in direct for pattern in rule.blocks}
    given |= {("feedback point", pattern) for rule in direct for pattern in rule.points}
    return [str(unknown(what, p, names)) for what, p in sorted(given) if not fnmatch.filter(names, p)]


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
