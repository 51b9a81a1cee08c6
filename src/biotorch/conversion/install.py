"""Execution of a conversion plan on a network."""

from __future__ import annotations

import contextlib
import warnings
import weakref
from collections.abc import Container, Iterator, Mapping
from typing import Any

from torch import nn

from biotorch import _seeding
from biotorch.conversion.forms import CutShortcut, hold_shared_feedback, install_cuts
from biotorch.conversion.rows import RowSearch
from biotorch.conversion.survey import PlannedLayer
from biotorch.errors import ConversionError, ConversionWarning
from biotorch.kernel.broadcast import Network, Output
from biotorch.layers import (
    Connection,
    FeedbackLayer,
    connections,
    feedback_type,
    reading_type,
    set_type,
    weights_at_rest,
)
from biotorch.rules import DirectRule

#: Attribute in which a module keeps the names of its parameters that a conversion froze.
_FROZEN = "biotorch_frozen"


def freeze_hidden(model: nn.Module, outputs: Container[int]) -> None:
    """Freeze all parameters except in `outputs` (ids) and in layers of other rules, if a rule trains outputs only."""
    layers = [module for module in model.modules() if isinstance(module, FeedbackLayer)]
    if not any(layer.rule.trains_output_only for layer in layers):
        return
    trained = {
        id(parameter)
        for layer in layers
        if id(layer) in outputs or not layer.rule.trains_output_only
        for parameter in layer.parameters()
    }
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.requires_grad and id(parameter) not in trained:
                parameter.requires_grad_(False)
                parameter.grad = None
                module.__dict__.setdefault(_FROZEN, []).append(name)


def thaw(model: nn.Module) -> None:
    """Undo `freeze_hidden`."""
    for module in model.modules():
        for name in module.__dict__.pop(_FROZEN, []):
            # Pruning and parametrizations move `weight` to `weight_orig` or into `parametrizations.weight`.
            for own, parameter in module.named_parameters():
                if own == name or own.startswith((f"{name}_", f"parametrizations.{name}.")):
                    parameter.requires_grad_(True)


def remove_hooks(model: nn.Module) -> None:
    """Remove the hooks of an earlier conversion."""
    for module in model.modules():
        for key, hook in list(module._forward_pre_hooks.items()):
            if isinstance(hook, CutShortcut | RowSearch):
                del module._forward_pre_hooks[key]
                module._forward_pre_hooks_with_kwargs.pop(key, None)


def install(
    model: nn.Module,
    planned: list[PlannedLayer],
    outputs: dict[int, Output],
    copy_weights: bool,
    seed: int,
    dense: Mapping[str, tuple[int, ...]],
    network: Network,
) -> None:
    """Execute a conversion plan. If a user's own rule or layer fails, the network stays as it was.

    Args:
        model: the network.
        planned: the layers to convert, with their rules.
        outputs: marks of the output layers, by the layer's id.
        copy_weights: whether to keep W and b.
        seed: seed of all random draws.
        dense: shapes of the rows of each dense B, by layer name.
        network: identity of the network, for all of its layers.

    Raises:
        ConversionError: a rule or a registered layer failed; the message says how.
    """
    with _all_or_nothing(planned), weights_at_rest(item.layer for item in planned):
        converted = [(_converted(item), item.rule, _seeding.derive(seed, item.name)) for item in planned]
        if not copy_weights:
            drawn: set[int] = set()  # tied weights are drawn once, before any B is made from them
            for layer, rule, own_seed in converted:
                weights = {id(layer.own_parameter(name)) for name in layer.weight_names}
                if not weights <= drawn:
                    drawn |= weights
                    layer.initialise_weights(rule, own_seed)
        n_out = max((output.stop for output in outputs.values()), default=None)
        n_whole = max((output.whole[1] for output in outputs.values() if output.whole is not None), default=n_out)
        holder = next((m for m in model.modules() if id(m) in outputs and isinstance(m, FeedbackLayer)), None)
        first_with: dict[tuple[Any, ...], Connection] = {}  # connections that share W share B
        for (layer, rule, own_seed), item in zip(converted, planned, strict=True):
            row = dense.get(item.name)
            # A convolution and a transposed one may share W, but a direct rule's B has another shape in each.
            keys = {
                name: (
                    id(layer if (own := layer.own_parameter(name)) is None else own),
                    rule,
                    (row or layer.projection_shape(name)) if rule.direct else None,
                )
                for name in layer.weight_names
            }
            twins = {name: first_with[key] for name, key in keys.items() if key in first_with}
            size = n_whole if item.form == "dense" else n_out
            layer.set_rule(
                rule, own_seed, size, twins, row, holder if item.form == "shared" else None, at_point=item.at_point
            )
            for name, key in keys.items():
                first_with.setdefault(key, layer.connection(name))
        hold_shared_feedback(model, planned, holder, n_out or 0, seed)
        _mark_time_major(model)
        _connect(model, outputs, network)
    thaw(model)
    freeze_hidden(model, outputs)
    _warn_of_sharing(model)


def _warn_of_sharing(model: nn.Module) -> None:
    """Warn if a W whose B learns from W's gradient is also the weight of a module that is no feedback layer."""
    found = connections(model)
    learned = {
        id(each.trained): name
        for name, each in found.items()
        if each.learned and not each.layer.rule.direct and not each.is_computed
    }
    layers = [module for module in model.modules() if isinstance(module, FeedbackLayer) and module.rule.learns]
    own = {part for layer in layers for part in (layer, *(layer.get_submodule(name) for name in layer.owned))}
    for name, module in model.named_modules():
        for parameter in module._parameters.values():
            if module not in own and id(parameter) in learned:
                warnings.warn(
                    f"{learned[id(parameter)]} shares its W with {name} ({type(module).__name__}): B does not get the "
                    "gradient that W gets there, so W - B does not vanish",
                    ConversionWarning,
                    stacklevel=4,
                )


@contextlib.contextmanager
def _all_or_nothing(planned: list[PlannedLayer]) -> Iterator[None]:
    """Restore the layers if the `with` block fails."""
    tensors = ("_parameters", "_buffers")
    before = [
        (item.layer, type(item.layer), {**vars(item.layer), **{name: dict(vars(item.layer)[name]) for name in tensors}})
        for item in planned
    ]
    try:
        yield
    except Exception as error:
        for layer, kind, attributes in before:
            layer.__class__ = kind
            layer.__dict__.clear()
            layer.__dict__.update(attributes)
        raise ConversionError(f"a rule or a registered layer failed, and the network is unchanged: {error}") from error


def _converted(item: PlannedLayer) -> FeedbackLayer:
    layer = item.layer
    if not isinstance(layer, FeedbackLayer):
        set_type(layer, feedback_type(layer) or type(layer))
    assert isinstance(layer, FeedbackLayer)
    layer.label = item.name
    return layer


def _connect(model: nn.Module, outputs: dict[int, Output], network: Network) -> None:
    """Mark the layers and output layers of the network, cut blocks as the rules ask, and prepare the search for rows.

    Modules that read weights become readers.
    """
    remove_hooks(model)
    network.whole = weakref.ref(model)
    layers = [module for module in model.modules() if isinstance(module, FeedbackLayer)]
    broadcasts = any(layer.rule.direct for layer in layers)
    for layer in layers:
        layer.network = network
        layer.output = outputs.get(id(layer)) if broadcasts else None
    for module in model.modules():
        reader = reading_type(module)
        if reader is not None and any(isinstance(each, FeedbackLayer) for each in module.modules()):
            set_type(module, reader)
    if broadcasts:
        model.register_forward_pre_hook(RowSearch(network, layers[0]), prepend=True, with_kwargs=True)
    cuts = install_cuts(model)
    if not cuts and any(isinstance(layer.rule, DirectRule) and layer.rule.shortcuts == "cut" for layer in layers):
        warnings.warn(
            "shortcuts='cut' found no residual block to cut: if the network has any, name them with "
            "blocks=['pattern', ...]; biotorch.audit shows whether gradient goes past the feedback",
            ConversionWarning,
            stacklevel=4,
        )


def _mark_time_major(model: nn.Module) -> None:
    """Set `batch_dim` of the linear layers in time-major transformers (`batch_first=False`)."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer):
            for layer in (module.linear1, module.linear2):
                if isinstance(layer, FeedbackLayer) and not module.self_attn.batch_first:
                    layer.batch_dim = 1
