"""`convert`, which puts a network under a learning rule in place."""

from __future__ import annotations

import fnmatch
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import torch
from torch import nn

from biotorch._names import unknown
from biotorch.conversion.forms import dense_sizes, differing_matrices, with_points
from biotorch.conversion.install import install
from biotorch.conversion.outputs import auxiliary_heads, find_outputs
from biotorch.conversion.survey import Entry, PlannedLayer, survey
from biotorch.errors import ConversionError, ConversionWarning
from biotorch.kernel.broadcast import Network, Pattern
from biotorch.layers import LAYER_TYPES, as_feedback
from biotorch.rules import DirectRule, Rule, make, option_names
from biotorch.rules.registry import own_name, require_own_option

#: A rule by name or as an object; None leaves the layer as it is.
RuleLike: TypeAlias = str | Rule | None
#: One rule for every layer, a mapping of layer-name patterns (first match wins), or a function (name, layer) -> rule.
Choice: TypeAlias = str | Rule | Mapping[str, RuleLike] | Callable[[str, nn.Module], RuleLike]


def first_match(name: str, patterns: Iterable[str]) -> str | None:
    """The first pattern that matches a layer's name and so decides its rule; None if no pattern matches."""
    return next((pattern for pattern in patterns if fnmatch.fnmatchcase(name, pattern)), None)


class Chooser:
    """Chooses the rule of each layer, and collects the problems of the user's choice instead of raising them."""

    def __init__(self, choice: Choice, options: dict[str, Any]) -> None:
        if isinstance(choice, type) or not (isinstance(choice, str | Rule | Mapping) or callable(choice)):
            raise TypeError(
                "a rule is a name, a Rule object, a mapping of layer patterns to rules, or a function "
                f"(name, layer) -> rule, not {choice!r}"
            )
        self.choice = choice
        self.options = options
        self.problems: list[str] = []
        self._made: dict[str, Rule] = {}
        self._named: dict[str, None] = {}
        self._used_patterns: set[str] = set()
        #: Layers that no pattern of a mapping matches. They were probably forgotten, while None is a decision.
        self.unmatched: set[str] = set()

    def rule_for(self, name: str, layer: nn.Module) -> Rule | None:
        """The layer's rule, or None if the layer is to be left as it is."""
        try:
            return self._resolve(self._pick(name, layer))
        except ValueError as error:
            if str(error) not in self.problems:
                self.problems.append(str(error))
            return None

    def finish(self, layer_names: list[str]) -> None:
        """Add the problems that are only known at the end: patterns and options that no layer used."""
        if isinstance(self.choice, Mapping):
            for pattern in self.choice:
                if pattern not in self._used_patterns and pattern != "*":  # "*" may match no layer
                    met = any(fnmatch.fnmatchcase(name, pattern) for name in layer_names)
                    why = (
                        "an earlier pattern matches all of its layers"
                        if met
                        else str(unknown("layer pattern", pattern, layer_names))
                    )
                    self.problems.append(why if not met else f"pattern {pattern!r}: {why}")
        if self._named:
            accepted = sorted({option for name in self._named for option in option_names(name)})
            for option in self.options:
                if option not in accepted:
                    self.problems.append(self._refusal(option, accepted))

    def _refusal(self, option: str, accepted: list[str]) -> str:
        try:
            for name in self._named:
                require_own_option(name, option)
        except ValueError as error:
            return str(error)
        return str(unknown(f"option of {', '.join(self._named)}", option, accepted))

    def _pick(self, name: str, layer: nn.Module) -> RuleLike:
        if isinstance(self.choice, str | Rule):
            return self.choice
        if isinstance(self.choice, Mapping):
            pattern = first_match(name, self.choice)
            if pattern is None:
                self.unmatched.add(name)
                return None
            self._used_patterns.add(pattern)
            return self.choice[pattern]
        return self.choice(name, layer)

    def _resolve(self, rule: RuleLike) -> Rule | None:
        if isinstance(rule, Rule):
            if self.options:
                raise ValueError(
                    f"options {', '.join(self.options)} do not go with a Rule object ({rule.name!r}): give them to the "
                    "rule itself"
                )
            return rule
        if rule is None:
            return None
        if not isinstance(rule, str):
            raise ValueError(f"a layer's rule is a name, a Rule object or None, not {rule!r}")
        rule = own_name(rule)
        if rule not in self._made:
            known_options = option_names(rule)  # raises for an unknown rule
            self._named.setdefault(rule)
            # One call may mix rules. Each takes the options it knows, and `finish` reports options that none takes.
            known = {key: value for key, value in self.options.items() if key in known_options}
            self._made[rule] = make(rule, **known)
        return self._made[rule]


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
    rows: Pattern | Callable[..., Any] | None = None,
    **options: Any,
) -> _Module:
    """Put `model` under a learning rule, in place, and return it.

    Each layer keeps its identity. Only the class of the object changes, to the feedback version of exactly
    its torch type, which is a subclass of that type. Parents, shared layers, tied weights, hooks,
    optimizers, device, dtype, memory format and flags are untouched. Layers with the same W get the
    same B. Converting again replaces the rule. The global random state is not changed.

    Args:
        model: any module, also a single layer.
        rule: a rule's name, a `Rule` object, a mapping of layer-name patterns to rules (the first match
            wins: `{"fc": "backpropagation", "*": "fa"}`), or a function (name, layer) -> rule. None as a
            layer's rule leaves the layer as it is.
        copy_weights: whether to keep W and b; if False, they are drawn again by the rule's `init`.
        output: name of the output layer, whose error a direct rule broadcasts, or a list of names
            if there are several heads. Default: the last feedback layer of `named_modules`.
        output_dim: size of the output, which is only checked against the model.
        strict: whether to raise, instead of warning, if a layer would be left on backpropagation.
        seed: seed of B (and of W with `copy_weights=False`), used together with the layer's name. Two networks
            of one architecture and seed get the same B. So do equal parts of one network that are converted one
            by one: convert the whole network, or give each part its own seed. Default: `torch.initial_seed()`.
        inputs: an example batch (a tensor, a tuple of arguments or a mapping of keyword arguments), from which
            `feedback="dense"` takes the input size of each B. The model is run on it once, in eval mode.
        rows: for direct rules, the rows of a layer's input that belong to each example (row of the output), where there
            are more or fewer rows than examples or they are in another order. `interleaved`: rows 0 to k - 1 belong to
            the first example (windows, frames). `tiled`: rows 0, n, 2 n ... do (views joined by `torch.cat`).
            A function of the model's inputs returns the example of each row, an integer tensor (R,) (the batch vector
            of graphs), a tuple of several for several numbers of rows, or a mapping of layer patterns to them.
            Default: found out by an extra pass at the first forward pass.
        **options: options of the rule; if there are several rules, each takes the options it knows.

    Raises:
        ConversionError: with a list of all problems: nothing to convert, unknown rules, options, patterns or
            output layers, an output that cannot be inferred, an `output_dim` that the model contradicts.
        TypeError: `model` is not a module, or `rule` or `rows` is nothing of the above.

    Warns:
        ConversionWarning: layers stay on backpropagation, or `shortcuts="cut"` found no shortcut to cut.

    Examples:
        >>> model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
        >>> model = biotorch.convert(model, "dfa")
        >>> model[0].feedback.shape  # (n_out, in_features)
        torch.Size([3, 8])
        >>> model = biotorch.convert(model, {"2": "backpropagation", "*": "fa"}, seed=1)
        >>> [layer.rule.name for layer in (model[0], model[2])]
        ['fa', 'backpropagation']
    """
    if rows not in (None, "interleaved", "tiled") and not callable(rows):
        raise TypeError(f"rows is 'interleaved', 'tiled' or a function of the model's inputs, not {rows!r}")
    if not isinstance(model, nn.Module):
        raise TypeError(f"convert takes a torch.nn.Module, got {type(model).__name__}")
    chooser = Chooser(rule, dict(options))
    entries = survey(model)
    candidates = [entry for entry in entries if entry.kind in ("feedback", "convertible")]
    chosen = [(entry, chooser.rule_for(entry.name, entry.module)) for entry in candidates]
    planned = [PlannedLayer(entry.name, entry.module, rule) for entry, rule in chosen if rule is not None]
    chooser.finish([entry.name for entry in candidates])

    problems = list(chooser.problems)
    if not candidates:
        problems.append(_nothing_to_convert(entries))
    elif not planned and not problems:
        problems.append("no layer was given a rule: the network would be unchanged")
    left = _left(entries, chooser.unmatched) if any(p.rule.name != "backpropagation" for p in planned) else []
    if strict and left:
        problems.append(_left_on_backprop(left))
    problems += _unmatched_patterns(model, planned) + differing_matrices(planned)
    problems += _computed_weights(planned, copy_weights)
    planned = with_points(model, planned)
    outputs = find_outputs(entries, planned, output, auxiliary_heads(model), output_dim, problems)
    if problems:
        raise ConversionError(_joined(problems))
    network = Network(rows)
    dense, outputs = dense_sizes(model, planned, outputs, inputs)
    outputs = {key: mark._replace(network=network) for key, mark in outputs.items()}
    if left:
        warnings.warn(_left_on_backprop(left), ConversionWarning, stacklevel=2)
    install(model, planned, outputs, copy_weights, torch.initial_seed() if seed is None else seed, dense, network)
    return model


def _left(entries: list[Entry], unmatched: set[str]) -> list[Entry]:
    """The layers that will transport their weights although the user did not ask for it."""
    forgotten = "no pattern matches it; give it None or 'backpropagation' to leave it on purpose"
    return [
        entry if entry.kind == "left" else entry._replace(reason=forgotten)
        for entry in entries
        if entry.kind == "left" or (entry.kind == "convertible" and entry.name in unmatched)
    ]


def _unmatched_patterns(model: nn.Module, planned: list[PlannedLayer]) -> list[str]:
    names = [name for name, _ in model.named_modules() if name]
    direct = {item.rule for item in planned if isinstance(item.rule, DirectRule)}
    given = {("block pattern", pattern) for rule in direct for pattern in rule.blocks}
    given |= {("feedback point", pattern) for rule in direct for pattern in rule.points}
    return [str(unknown(what, p, names)) for what, p in sorted(given) if not fnmatch.filter(names, p)]


def _computed_weights(planned: list[PlannedLayer], copy_weights: bool) -> list[str]:
    """Problems of the layers whose weight is computed from other tensors."""
    problems = []
    for name, layer, rule, _ in planned:
        with as_feedback(layer) as converted:
            computed = any(converted.own_parameter(each) is None for each in converted.weight_names)
        if computed and rule.needs_parameter:
            problems.append(f"{name}: {rule.needs_parameter}")
        elif computed and not copy_weights:
            problems.append(f"{name}: its weight is computed from other tensors and cannot be drawn: copy_weights=True")
    return problems


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
