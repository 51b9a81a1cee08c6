"""Identity shortcuts: where the residual blocks are, and how a strict direct rule cuts them."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from biotorch.autograd import Cut, uncompiled
from biotorch.layers import FeedbackLayer
from biotorch.rules import DirectRule

#: Residual blocks of the common families, by qualified class name (nothing is imported to compare).
_BLOCKS = {
    "biotorch.models.cifar_resnet.BasicBlock",
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
    "torch.nn.modules.transformer.TransformerEncoderLayer",
}


def residual_blocks(model: nn.Module, patterns: Sequence[str] = ()) -> dict[str, nn.Module]:
    """The residual blocks of `model` by name: those of known families, and those `patterns` name."""
    return {
        name: module
        for name, module in model.named_modules()
        if _is_known_block(module) or any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
    }


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

    def __call__(self, block: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        layer = block.get_submodule(self.path)
        assert isinstance(layer, FeedbackLayer)
        if layer.true_gradients or not torch.is_grad_enabled():
            return None
        if not args or not isinstance(args[0], Tensor):
            raise RuntimeError(
                f"{layer.label}: shortcuts='cut' needs the tensor that its residual block "
                f"({type(block).__name__}) takes as first positional argument"
            )
        return (_cut(args[0], layer), *args[1:])


@uncompiled
def _cut(x: Tensor, layer: FeedbackLayer) -> Tensor:
    _, operation = layer.operation(x)
    cut: Tensor = Cut.apply(x, layer.feedback, operation, layer.rule.gradient_clip, layer.label)
    return cut


def remove_cuts(model: nn.Module) -> None:
    """Take out the hooks of an earlier conversion."""
    for module in model.modules():
        for key, hook in list(module._forward_pre_hooks.items()):
            if isinstance(hook, CutShortcut):
                del module._forward_pre_hooks[key]


def install_cuts(model: nn.Module, patterns: Sequence[str]) -> int:
    """Cut every residual block whose first direct layer asks for it; returns their number."""
    cuts = 0
    for block in residual_blocks(model, patterns).values():
        direct = ((name, m) for name, m in block.named_modules() if isinstance(m, FeedbackLayer) and m.rule.direct)
        path, first = next(direct, ("", None))
        if first is not None and isinstance(first.rule, DirectRule) and first.rule.shortcuts == "cut":
            block.register_forward_pre_hook(CutShortcut(path))
            cuts += 1
    return cuts
