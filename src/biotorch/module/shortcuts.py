"""Identity shortcuts: where the residual blocks are, and how a strict direct rule cuts them."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from biotorch.autograd import Cut, uncompiled
from biotorch.layers import FeedbackLayer
from biotorch.rules import DirectRule

#: Residual blocks of the common families, by qualified class name (nothing is imported to compare).
_BLOCKS = {
    "biotorch.models.cifar_resnet.BasicBlock",
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
    """The residual blocks of `model` by name: those of known families, and those `patterns` name."""
    return {
        name: module
        for name, module in model.named_modules()
        if _is_known_block(module) or any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
    }


def possible_blocks(model: nn.Module, patterns: Sequence[str] = ()) -> dict[str, nn.Module]:
    """The residual blocks, and whatever else is called like one and has several layers inside.

    For the audit, which measures whether anything goes past them: the more it looks at, the better.
    """
    candidates = {
        name: module
        for name, module in model.named_modules()
        if type(module).__name__.endswith(("Block", "Layer", "Bottleneck", "Residual"))
        and sum(1 for _ in module.children()) > 1
    }
    return {**residual_blocks(model, patterns), **candidates}


def outermost(model: nn.Module, patterns: Sequence[str]) -> dict[str, nn.Module]:
    """The modules by name that match one of `patterns` and lie in no other that does."""
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

    A projection shortcut ends in a feedback layer of its own and does not. Read off the structure;
    `biotorch.audit` measures it.
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
    """Forward pre-hook of a residual block: only the broadcast error leaves the block upstream.

    The error is projected by the feedback of the block's first direct layer, in the shape of the
    block's input: what that layer would hand to it if it read it directly.
    """

    def __init__(self, path: str) -> None:
        self.path = path  # within the block, so that a copy or replica of the block finds its own layer

    def __call__(
        self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        layer = block.get_submodule(self.path)
        assert isinstance(layer, FeedbackLayer)
        if layer.plain:
            return None
        if args and isinstance(args[0], Tensor):
            return (_cut(args[0], layer), *args[1:]), kwargs
        name = next((name for name, value in kwargs.items() if isinstance(value, Tensor)), None)
        if args or name is None:
            raise RuntimeError(
                f"{layer.label}: its block ({type(block).__name__}) is cut off from gradients, which needs the tensor "
                "that the block takes as its first argument"
            )
        return args, {**kwargs, name: _cut(kwargs[name], layer)}


@uncompiled
def _cut(x: Tensor, layer: FeedbackLayer) -> Tensor:
    first, operation = layer.connections[0], layer.entry(x)
    cut: Tensor = Cut.apply(x, layer.projector(first, x).detach(), operation, layer.receiver(first))
    return cut


def remove_cuts(model: nn.Module) -> None:
    """Take out the hooks of an earlier conversion."""
    for module in model.modules():
        for key, hook in list(module._forward_pre_hooks.items()):
            if isinstance(hook, CutShortcut):
                del module._forward_pre_hooks[key]
                module._forward_pre_hooks_with_kwargs.pop(key, None)


def install_cuts(model: nn.Module) -> int:
    """Cut the blocks whose first direct layer asks for it; returns the number of residual blocks among them."""
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
