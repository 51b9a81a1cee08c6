"""What each parametrised module of a network is to a learning rule."""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils import parametrize

from biotorch.layers import LAYER_TYPES, FeedbackLayer

#: feedback: under a rule; convertible: could be; left: transports its weights, if anything flows
#: upstream of it; local: its gradients need no weights of another unit.
Kind = Literal["feedback", "convertible", "left", "local"]

_LOCAL = (nn.Embedding, nn.EmbeddingBag, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, _NormBase)

_REASONS: dict[type[nn.Module], str] = {
    nn.MultiheadAttention: "attention reads its weights functionally, not through layers",
    nn.RNNBase: "a recurrent layer is one fused call over all time steps",
    nn.RNNCellBase: "no feedback version of recurrent cells",
    nn.Bilinear: "no feedback version of Bilinear",
}


class Entry(NamedTuple):
    """One module that owns parameters. `reason` says why it is left, or what makes it local."""

    name: str
    module: nn.Module
    kind: Kind
    reason: str


def survey(model: nn.Module) -> list[Entry]:
    """Every module of `model` that owns parameters, each object once, in the order of `named_modules`."""
    entries = []
    for name, module in model.named_modules():
        if isinstance(module, parametrize.ParametrizationList) or _inside_parametrization(name):
            continue  # reported with the layer whose weight it computes
        if module._parameters or parametrize.is_parametrized(module):
            kind, reason = _classify(module)
            entries.append(Entry(name, module, kind, reason))
    return entries


def weight_matrices(module: nn.Module) -> dict[str, nn.Parameter]:
    """The module's own parameters that mix units: more than a vector, by attribute name.

    A vector (batch-norm scale, layer scale, class token) acts on each unit alone.
    """
    owners = [module]
    if parametrize.is_parametrized(module):
        owners += list(module.parametrizations.modules())  # type: ignore[union-attr]
    named = {
        name: p
        for owner in owners
        for name, p in owner._parameters.items()
        if p is not None and not nn.parameter.is_lazy(p)
    }
    if isinstance(module, (FeedbackLayer, *LAYER_TYPES)):
        return {name: p for name, p in named.items() if p.dim() > 1}  # (1, n) is a matrix here
    return {name: p for name, p in named.items() if p.dim() > 1 and p.numel() > max(p.shape)}


def _inside_parametrization(name: str) -> bool:
    return "parametrizations" in name.split(".")


def _classify(module: nn.Module) -> tuple[Kind, str]:
    if isinstance(module, FeedbackLayer):
        return "feedback", ""
    if type(module) in LAYER_TYPES:
        obstacle = _obstacle(module)
        return ("left", obstacle) if obstacle else ("convertible", "")
    if isinstance(module, _LOCAL):
        return "local", "acts on each unit or token alone"
    if parametrize.is_parametrized(module):
        return "left", "its weight is parametrized: remove the parametrization to convert it"
    if any(nn.parameter.is_lazy(p) for p in module._parameters.values() if p is not None):
        return "left", "its shape is not known yet: run a batch first"
    if not weight_matrices(module):
        return "local", "holds vectors only"
    for known, reason in _REASONS.items():
        if isinstance(module, known):
            return "left", reason
    for torch_type in LAYER_TYPES:
        if isinstance(module, torch_type):
            kind = f"{type(module).__module__}.{type(module).__qualname__}"
            return "left", f"a subclass of {torch_type.__name__} ({kind}) may compute something else"
    if next(module.children(), None) is not None:
        return "left", "parameters used by a composite module's own code; biotorch.audit shows what they do"
    return "left", f"no feedback version of {type(module).__name__}"


def _obstacle(module: nn.Module) -> str:
    """Why a layer of exactly a convertible type cannot be converted; empty if it can."""
    if "forward" in module.__dict__:
        return "its forward is replaced on the instance"
    if not isinstance(module._parameters.get("weight"), nn.Parameter):
        return "its weight is computed by a hook (weight_norm, spectral_norm)"
    return ""
