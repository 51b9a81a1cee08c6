"""Forms of direct feedback: with cut shortcuts, dense, shared by all layers, and at the input of blocks."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from biotorch import _seeding
from biotorch.conversion import nested
from biotorch.conversion.survey import PlannedLayer
from biotorch.errors import ConversionError
from biotorch.kernel.broadcast import Output
from biotorch.layers import FeedbackLayer, as_feedback, connections, feedback_type
from biotorch.layers.networks import isolated
from biotorch.layers.tensors import SHARED_BUFFERS
from biotorch.layers.tracing import is_traced
from biotorch.rules import DirectRule, Rule, initial, make
from biotorch.rules.base import IMPERFECTIONS

#: Residual blocks of the common families, by qualified class name (nothing is imported to compare).
_BLOCKS = {
    "biotorch.models.convolutional.BasicBlock",
    "timm.models.convnext.ConvNeXtBlock",
    "timm.models.resnet.BasicBlock",
    "timm.models.resnet.Bottleneck",
    "timm.models.swin_transformer.SwinTransformerBlock",
    "timm.models.vision_transformer.Block",
    "torch.nn.modules.transformer.TransformerDecoderLayer",
    "torch.nn.modules.transformer.TransformerEncoderLayer",
    "torchvision.models.convnext.CNBlock",
    "torchvision.models.efficientnet.FusedMBConv",
    "torchvision.models.efficientnet.MBConv",
    "torchvision.models.mnasnet._InvertedResidual",
    "torchvision.models.mobilenetv2.InvertedResidual",
    "torchvision.models.mobilenetv3.InvertedResidual",
    "torchvision.models.regnet.ResBottleneckBlock",
    "torchvision.models.resnet.BasicBlock",
    "torchvision.models.resnet.Bottleneck",
    "torchvision.models.swin_transformer.SwinTransformerBlock",
    "torchvision.models.swin_transformer.SwinTransformerBlockV2",
    "torchvision.models.vision_transformer.EncoderBlock",
    "transformers.models.bert.modeling_bert.BertLayer",
    "transformers.models.convnext.modeling_convnext.ConvNextLayer",
    "transformers.models.distilbert.modeling_distilbert.TransformerBlock",
    "transformers.models.gpt2.modeling_gpt2.GPT2Block",
    "transformers.models.t5.modeling_t5.T5Block",
    "transformers.models.vit.modeling_vit.ViTLayer",
}


def residual_blocks(model: nn.Module, patterns: Sequence[str] = ()) -> dict[str, nn.Module]:
    """The residual blocks of `model` by name: blocks of known families, and modules whose name matches `patterns`."""
    return {
        name: module
        for name, module in model.named_modules()
        if _is_known_block(module) or any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
    }


def possible_blocks(model: nn.Module, patterns: Sequence[str] = ()) -> dict[str, nn.Module]:
    """The residual blocks by name, and all other modules with a block's name and several children.

    For the audit, which measures whether gradient goes past a block; a module that is no block does no harm.
    """
    candidates = {
        name: module
        for name, module in model.named_modules()
        if type(module).__name__.endswith(("Block", "Layer", "Bottleneck", "Residual"))
        and sum(1 for _ in module.children()) > 1
    }
    return {**residual_blocks(model, patterns), **candidates}


def outermost(model: nn.Module, patterns: Sequence[str]) -> dict[str, nn.Module]:
    """The modules by name that match one of `patterns` and are not inside another matching module."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if name and not inside and any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
            found[name] = module
    return found


def _is_known_block(module: nn.Module) -> bool:
    if f"{type(module).__module__}.{type(module).__qualname__}" not in _BLOCKS:
        return False
    # MobileNets, EfficientNets and MnasNets use one class with and without a shortcut.
    switches = ("use_res_connect", "apply_residual")
    return all(getattr(module, switch, True) for switch in switches)


def leaking_shortcuts(model: nn.Module) -> list[str]:
    """Names of the residual blocks whose identity path carries gradient past a direct rule's feedback.

    A projection shortcut does not, because it ends in a feedback layer of its own. The answer is inferred from the
    structure of the network; `biotorch.audit` measures it.
    """
    return [
        name
        for name, block in residual_blocks(model).items()
        if not any(isinstance(hook, CutShortcut) for hook in block._forward_pre_hooks.values())
        and any(isinstance(m, FeedbackLayer) and m.rule.direct for m in block.modules())
        and not _projects(block)
    ]


def _projects(block: nn.Module) -> bool:
    shortcut = getattr(block, "downsample", None) or getattr(block, "proj", None)
    return shortcut is not None and any(isinstance(m, FeedbackLayer) for m in shortcut.modules())


class CutShortcut:
    """Forward pre-hook of a residual block that lets only the broadcast error leave the block upstream.

    The error is projected by the feedback of the block's first direct layer to the shape of the
    block's input, as if that layer read the input directly.
    """

    def __init__(self, path: str) -> None:
        self.path = path  # relative to the block, so that a copy or replica of the block finds its own layer

    def __call__(
        self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        layer = block.get_submodule(self.path)
        assert isinstance(layer, FeedbackLayer)
        if any(map(is_traced, (*args, *kwargs.values()))):
            raise RuntimeError(
                f"{layer.label}: its block ({type(block).__name__}) is cut off from gradients, so torch.fx must keep "
                "the block whole: make its class a leaf module of the tracer (for create_feature_extractor, "
                "tracer_kwargs={'leaf_modules': [...]})"
            )
        if layer.plain:
            return None
        if args and isinstance(args[0], Tensor):
            return (layer.cut(args[0]), *args[1:]), kwargs
        name = next((name for name, value in kwargs.items() if isinstance(value, Tensor)), None)
        if args or name is None:
            raise RuntimeError(
                f"{layer.label}: its block ({type(block).__name__}) is cut off from gradients, so the block needs a "
                "tensor as its first argument"
            )
        return args, {**kwargs, name: layer.cut(kwargs[name])}


def install_cuts(model: nn.Module) -> int:
    """Cut the blocks whose first direct layer has a rule that asks for it; return the number of residual blocks cut."""
    layers = [module for module in model.modules() if isinstance(module, FeedbackLayer)]
    rules = {layer.rule for layer in layers if isinstance(layer.rule, DirectRule)}
    named = sorted({pattern for rule in rules if rule.shortcuts == "cut" for pattern in rule.blocks})
    residual = residual_blocks(model, named)
    points = outermost(model, sorted({pattern for rule in rules for pattern in rule.points}))
    cuts = 0
    for name, block in {**residual, **points}.items():
        direct = ((path, m) for path, m in block.named_modules() if isinstance(m, FeedbackLayer) and m.rule.direct)
        path, first = next(direct, ("", None))
        if first is None or not isinstance(first.rule, DirectRule):
            continue
        if name in points or first.rule.shortcuts == "cut":
            block.register_forward_pre_hook(CutShortcut(path), with_kwargs=True)
            cuts += name in residual
    return cuts


def with_points(model: nn.Module, planned: list[PlannedLayer]) -> list[PlannedLayer]:
    """Adapt the plan to feedback points: the first layer of a block holds B, the others get backpropagation."""
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


def dense_sizes(
    model: nn.Module, planned: list[PlannedLayer], outputs: Mapping[int, Output], inputs: Any
) -> tuple[dict[str, tuple[int, ...]], dict[int, Output]]:
    """Sizes of each dense B, from a forward pass on `inputs`.

    Returns:
        The shapes of the rows of each dense B by layer name, and the marks of the output layers. If an output has
        positions in space, each mark has the rows of a dense B that belong to the whole output.
    """
    asked = [item for item in planned if item.form == "dense"]
    dense = {item.name: item.layer for item in asked if _has_dense_size(item.layer)}
    ends = {id(module): module for module in model.modules() if id(module) in outputs} if asked else {}
    spatial = {key: module for key, module in ends.items() if _has_dense_size(module)}
    if not dense and not spatial:
        return {}, dict(outputs)
    if inputs is None:
        raise ConversionError(
            "feedback='dense' makes B for one input size of each convolution: give an example batch, "
            "biotorch.convert(model, ..., inputs=batch)"
        )
    sizes: dict[str, tuple[int, ...]] = {}
    positions: dict[int, int] = {}

    def note(name: str, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        with as_feedback(layer) as converted:
            sizes[name] = converted.dense_size(args[0] if args else next(iter(kwargs.values()))) or ()

    def note_output(layer: Any, _: Any, y: Tensor) -> None:
        positions[id(layer)] = y.shape[-len(layer.kernel_size) :].numel()

    handles = [
        layer.register_forward_pre_hook(
            lambda layer, args, kwargs, name=name: note(name, layer, args, kwargs), with_kwargs=True
        )
        for name, layer in dense.items()
    ]
    handles += [layer.register_forward_hook(note_output) for layer in spatial.values()]
    args, kwargs = nested.arguments(inputs)
    modes = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad(), isolated(model):
            model.eval()(*args, **kwargs)
    except (RuntimeError, ValueError, TypeError) as error:
        raise ConversionError(f"feedback='dense': the model failed on inputs=...: {error}") from error
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes.items():
            module.training = training
    if missing := [name for name in dense if name not in sizes]:
        raise ConversionError(f"feedback='dense': the forward of {', '.join(missing)} did not run on inputs=...")
    if all(positions.get(key, 1) == 1 for key in outputs):
        return sizes, dict(outputs)
    marked, start = {}, 0
    for key, output in outputs.items():
        rows = (output.stop - output.start) * positions.get(key, 1)
        marked[key] = output._replace(whole=(start, start + rows))
        start += rows
    return sizes, marked


def _has_dense_size(layer: nn.Module) -> bool:
    kind = feedback_type(layer)
    return kind is not None and kind.dense_size is not FeedbackLayer.dense_size


#: Options of direct rules that are properties of the whole matrix under `feedback="shared"`.
_OF_MATRIX = ("feedback_density", *IMPERFECTIONS)


def differing_matrices(planned: list[PlannedLayer]) -> list[str]:
    """The problems that layers want a shared matrix of different properties; empty if they do not."""
    sharing = [each.rule for each in planned if isinstance(each.rule, DirectRule) and each.form == "shared"]
    wanted = {option: dict.fromkeys(getattr(rule, option) for rule in sharing) for option in _OF_MATRIX}
    return [
        f"feedback='shared' is one matrix for all layers: give them one {option}, not {' and '.join(map(str, values))}"
        for option, values in wanted.items()
        if len(values) > 1
    ]


def hold_shared_feedback(
    model: nn.Module, planned: list[PlannedLayer], holder: FeedbackLayer | None, n_out: int, seed: int
) -> None:
    """Create the shared matrix, of which layers with `feedback="shared"` use slices, as a buffer of `holder`."""
    found = list(connections(model).values())
    for layer in model.modules():  # an earlier conversion's matrix goes when no layer uses a slice of it
        if "shared_feedback" in layer._buffers and not any(each.holder is layer for each in found):
            for name in SHARED_BUFFERS:
                layer._buffers.pop(name, None)
    sharing = [each for each in found if each.holder is holder and each.columns is not None]
    if holder is None or not any(item.form == "shared" for item in planned):
        return
    rule = sharing[0].layer.rule
    width = max(each.columns.size for each in sharing if each.columns is not None)
    matrix = holder.connections[0].weight.new_empty((n_out, width))
    initial.draw_unit(matrix, rule.feedback_distribution, _seeding.generator(_seeding.derive(seed, "shared feedback")))
    assert isinstance(rule, DirectRule)
    thinning = _seeding.generator(_seeding.derive(seed, "shared feedback density"))
    holder.register_buffer("shared_feedback", initial.thinned(matrix, rule.feedback_density, thinning))
    own = _seeding.derive(seed, "shared feedback")
    holder.make_imperfect("shared", rule, matrix, own, own)
