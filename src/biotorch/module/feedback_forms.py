"""The forms of direct feedback that concern a whole network: dense, shared, at points."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from biotorch import seeding
from biotorch.layers import FeedbackLayer, as_feedback, connections, feedback_type
from biotorch.module import nested
from biotorch.module.isolation import isolated
from biotorch.module.plan import ConversionError, Planned
from biotorch.module.shortcuts import outermost
from biotorch.rules import DirectRule, Rule, initial, make


def with_points(model: nn.Module, planned: list[Planned]) -> list[Planned]:
    """Where a rule has feedback points: the first layer of each block holds its B, the others get backpropagation."""
    first: set[str] = set()
    inside: set[str] = set()
    for rule in {item.rule for item in planned if isinstance(item.rule, DirectRule) and item.rule.points}:
        for block in outermost(model, rule.points):
            names = [item.name for item in planned if item.rule == rule and f"{item.name}.".startswith(f"{block}.")]
            first.update(names[:1])
            inside.update(names[1:])
    marked = [item._replace(at_point=item.name in first) for item in planned]
    return [item._replace(rule=_backpropagation_like(item.rule)) if item.name in inside else item for item in marked]


def _backpropagation_like(rule: Rule) -> Rule:
    return make(
        "backpropagation", init=rule.init, gradient_clip=rule.gradient_clip, constrain_weights=rule.constrain_weights
    )


def dense_sizes(model: nn.Module, planned: list[Planned], inputs: Any) -> dict[str, tuple[int, ...]]:
    """Rows of a dense B by layer name, read off a forward on `inputs`."""
    dense = {item.name: item.layer for item in planned if item.form == "dense" and _has_dense_size(item.layer)}
    if not dense:
        return {}
    if inputs is None:
        raise ConversionError(
            "feedback='dense' makes B for one size of the convolutions' inputs: give an example batch, "
            "biotorch.convert(model, ..., inputs=batch)"
        )
    sizes: dict[str, tuple[int, ...]] = {}

    def note(name: str, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        with as_feedback(layer) as converted:
            sizes[name] = converted.dense_size(args[0] if args else next(iter(kwargs.values()))) or ()

    handles = [
        layer.register_forward_pre_hook(
            lambda layer, args, kwargs, name=name: note(name, layer, args, kwargs), with_kwargs=True
        )
        for name, layer in dense.items()
    ]
    args, kwargs = nested.arguments(inputs)
    modes = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad(), isolated(model):
            model.eval()(*args, **kwargs)
    except (RuntimeError, ValueError, TypeError) as error:
        raise ConversionError(f"feedback='dense': the model does not take inputs=...: {error}") from error
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes.items():
            module.training = training
    if missing := [name for name in dense if name not in sizes]:
        raise ConversionError(f"feedback='dense': the forward of {', '.join(missing)} did not run on inputs")
    return sizes


def _has_dense_size(layer: nn.Module) -> bool:
    kind = feedback_type(type(layer))
    return kind is not None and kind.dense_size is not FeedbackLayer.dense_size


def hold_shared_feedback(
    model: nn.Module, planned: list[Planned], holder: FeedbackLayer | None, n_out: int, seed: int
) -> None:
    """Create the matrix of which the layers under a shared feedback have slices, as a buffer of `holder`."""
    found = list(connections(model).values())
    for layer in model.modules():  # the matrix of an earlier conversion, if nobody has a slice of it any more
        if "shared_feedback" in layer._buffers and not any(each.holder is layer for each in found):
            del layer.shared_feedback
    sharing = [each for each in found if each.holder is holder and each.columns is not None]
    if holder is None or not any(item.form == "shared" for item in planned):
        return
    rule = sharing[0].layer.rule
    width = max(each.columns.size for each in sharing if each.columns is not None)
    matrix = holder.connections[0].weight.new_empty((n_out, width))
    initial.draw_unit(matrix, rule.feedback_distribution, seeding.generator(seeding.derive(seed, "shared feedback")))
    holder.register_buffer("shared_feedback", matrix)
