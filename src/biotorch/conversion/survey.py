"""Survey of the modules with parameters (which can be converted, which transport weights), and conversion plans."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils import parametrize

from biotorch.layers import LAYER_TYPES, FeedbackLayer, feedback_type, is_feedback
from biotorch.rules import DirectRule, Rule


class PlannedLayer(NamedTuple):
    """A layer that is to be converted, with its rule."""

    name: str
    layer: nn.Module
    rule: Rule
    #: Whether the layer is the first of a block that is a feedback point.
    at_point: bool = False

    @property
    def form(self) -> str | None:
        """Form of B under a direct rule (kernel, dense or shared), else None."""
        return self.rule.feedback if isinstance(self.rule, DirectRule) else None


#: feedback: the module is under a rule; convertible: it could be; left: it cannot be, and transports its weights
#: if gradient flows upstream of it; local: its gradients need no weights of another unit.
Kind = Literal["feedback", "convertible", "left", "local"]

_LOOKUPS = (nn.Embedding, nn.EmbeddingBag)
_LOCAL = (*_LOOKUPS, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, _NormBase)

#: Names of parameters that are added to activations: learned positions, tokens, attention biases.
_ADDED = re.compile(r"(^|_)(pos|position|positions|token|tokens|cls|bias|query_pos)(_|$)|pos_?emb")


class Entry(NamedTuple):
    """One module that owns parameters. `reason` says why it is left on backpropagation, or why it is local."""

    name: str
    module: nn.Module
    kind: Kind
    reason: str


def survey(model: nn.Module) -> list[Entry]:
    """List every module of `model` that owns parameters, each object once, in the order of `named_modules`."""
    entries = []
    owned: set[nn.Module] = set()
    for name, module in model.named_modules():
        if module in owned:
            continue  # reported with the layer that reads it
        if isinstance(module, parametrize.ParametrizationList) or _inside_parametrization(name):
            continue  # reported with the layer whose weight it computes
        if module._parameters or parametrize.is_parametrized(module):
            kind, reason = _classify(module)
            if kind in ("feedback", "convertible"):
                owned.update(owned_modules(module))
            entries.append(Entry(name, module, kind, reason))
    return entries


def weight_matrices(module: nn.Module) -> dict[str, nn.Parameter]:
    """The module's own parameters that mix units, by attribute name: all that are more than a vector.

    A vector (batch-norm scale, layer scale, class token) acts on each unit separately.
    """
    owners = [module, *owned_modules(module)]
    if parametrize.is_parametrized(module):
        owners += list(module.parametrizations.modules())  # type: ignore[union-attr]
    named = {
        f"{number}.{name}" if number else name: p
        for number, owner in enumerate(owners)
        for name, p in owner._parameters.items()
        if p is not None and not nn.parameter.is_lazy(p)
    }
    if isinstance(module, FeedbackLayer):  # a B that learns is a parameter but no weight
        named = {name: p for name, p in named.items() if not is_feedback(name)}
    if isinstance(module, (FeedbackLayer, *LAYER_TYPES)) or feedback_type(module) is not None:
        return {name: p for name, p in named.items() if p.dim() > 1}  # in these layers (1, n) is a matrix
    return {name: p for name, p in named.items() if p.dim() > 1 and p.numel() > max(p.shape)}


def is_known_local(module: nn.Module) -> bool:
    """Whether a module is local by its type, and not only judged so by its parameters' names and shapes."""
    return isinstance(module, _LOCAL)


def owned_modules(module: nn.Module) -> list[nn.Module]:
    """Submodules whose parameters a layer reads itself, such as the output projection of attention."""
    kind = feedback_type(module)
    if kind is None or kind.obstacle(module) or _obstacle(module) or _obstacle_inside(module, kind.owned):
        return []
    return [module.get_submodule(name) for name in kind.owned]


def _inside_parametrization(name: str) -> bool:
    return "parametrizations" in name.split(".")


def _classify(module: nn.Module) -> tuple[Kind, str]:
    if isinstance(module, FeedbackLayer):
        return "feedback", ""
    if (kind := feedback_type(module)) is not None:
        obstacle = _obstacle(module) or kind.obstacle(module) or _obstacle_inside(module, kind.owned)
        return ("left", obstacle) if obstacle else ("convertible", "")
    if isinstance(module, _LOCAL):
        return "local", f"{'lookup' if isinstance(module, _LOOKUPS) else 'normalisation'}, local"
    if any(nn.parameter.is_lazy(p) for p in module._parameters.values() if p is not None):
        return "left", "its shape is not known yet: run a batch through the network first"
    matrices = weight_matrices(module)
    if not matrices:
        return "local", "holds vectors only"
    return _classify_by_parameters(module, matrices)


def _classify_by_parameters(module: nn.Module, matrices: dict[str, nn.Parameter]) -> tuple[Kind, str]:
    """Classify a module of a type that is not registered."""
    for torch_type in LAYER_TYPES:
        if isinstance(module, torch_type):
            kind: type[nn.Module] = parametrize.type_before_parametrizations(module)
            name = f"{kind.__module__}.{kind.__qualname__}"
            return "left", f"a subclass of {torch_type.__name__} ({name}) may compute something else"
    if all(_ADDED.search(name) or len(p) == 1 for name, p in matrices.items()):
        return "local", f"{', '.join(matrices)}: added to activations, judged by name or shape; biotorch.audit tests it"
    if next(module.children(), None) is not None:
        return "left", "parameters used by a composite module's own code; biotorch.audit shows what they do"
    return "left", f"no feedback version of {type(module).__name__}"


def _obstacle_inside(module: nn.Module, owned: Sequence[str]) -> str:
    """The obstacle in the submodules whose parameters the layer reads itself; empty if there is none."""
    for name in owned:
        inner = module.get_submodule(name)
        if why := _obstacle(inner):
            return f"{name}: {why}"
        if any(isinstance(value, Tensor) for value in vars(inner).values()):
            return f"{name}: its weight is computed by a hook (pruning, weight_norm), which the layer does not run"
    return ""


def _obstacle(module: nn.Module) -> str:
    """The reason why a layer of a convertible type cannot be converted; empty if it can."""
    if "forward" in module.__dict__:
        return "its forward is replaced on the instance"
    return ""
