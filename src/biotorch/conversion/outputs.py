"""Search for the output layers of a network, whose errors a direct rule broadcasts."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from biotorch._names import unknown
from biotorch.conversion.survey import Entry, PlannedLayer
from biotorch.kernel.broadcast import Output
from biotorch.layers import FeedbackLayer, as_feedback
from biotorch.rules import DirectRule

#: Heads other than the last layer that enter the loss, by qualified class name, so that nothing is imported to compare.
_AUXILIARY_HEADS: dict[str, tuple[str, ...]] = {
    "timm.models.deit.VisionTransformerDistilled": ("head", "head_dist"),
    "timm.models.inception_v3.InceptionV3": ("AuxLogits.fc",),
    "timm.models.levit.LevitDistilled": ("head.linear", "head_dist.linear"),
    "torchvision.models.googlenet.GoogLeNet": ("aux1.fc2", "aux2.fc2"),
    "torchvision.models.inception.Inception3": ("AuxLogits.fc",),
}


_CURE = "Name the output layer with output=...; it must be a layer with a rule, which may be 'backpropagation'."


def auxiliary_heads(model: nn.Module) -> list[str]:
    """Names of the heads other than the last layer, for networks of known families anywhere in `model`."""
    names = []
    for name, module in model.named_modules():
        kind = f"{type(module).__module__}.{type(module).__qualname__}"
        names += [".".join(filter(None, (name, head))) for head in _AUXILIARY_HEADS.get(kind, ())]
    return names


def find_outputs(
    entries: list[Entry],
    planned: list[PlannedLayer],
    output: str | Sequence[str] | None,
    auxiliary: Sequence[str],
    output_dim: int | None,
    problems: list[str],
) -> dict[int, Output]:
    """Find the output layers, by id, with the rows of B that belong to each; empty if no rule needs them.

    Layers that keep the rule of an earlier conversion are considered, too. Problems are appended to `problems`.
    """
    given = {item.name for item in planned}
    ruled = {entry.name: entry.module for entry in entries if entry.kind == "feedback" or entry.name in given}
    kept = {name: module for name, module in ruled.items() if name not in given and isinstance(module, FeedbackLayer)}
    kept_direct = {name: layer for name, layer in kept.items() if layer.rule.direct}
    direct = bool(kept_direct) or any(item.rule.direct for item in planned)
    all_rules = [*(item.rule for item in planned), *(layer.rule for layer in kept.values())]
    asked = direct or any(rule.trains_output_only for rule in all_rules)
    if not asked and output is None and output_dim is None:
        return {}
    names = _output_names(entries, ruled, output, auxiliary, problems)
    outputs, start = {}, 0
    for name in names:
        with as_feedback(ruled[name]) as layer:
            size = layer.output_size
        if size is None:
            problems.append(
                f"{name} ({type(ruled[name]).__name__}) cannot be the output layer: its output is not an affine map of "
                f"its input. {_CURE}"
            )
            continue
        outputs[id(ruled[name])] = Output(start, start + size)
        start += size
    if output_dim is not None and outputs and output_dim != start:
        problems.append(f"output_dim={output_dim}, but the output ({', '.join(names)}) has size {start}")
    for name, layer in kept_direct.items():
        (rows, *_) = layer.connections[0].feedback_shape or (start,)
        whole = [output.whole for each in ruled.values() if (output := getattr(each, "output", None)) is not None]
        if isinstance(layer.rule, DirectRule) and layer.rule.feedback == "dense" and any(whole):
            problems.append(f"{name} keeps a dense B for a whole image: convert this layer again, too")
        elif outputs and rows != start:
            problems.append(
                f"{name} keeps a B for {rows} outputs, but the output ({', '.join(names)}) has size {start}: "
                "convert this layer again, too"
            )
        holder = layer.connections[0].holder
        if holder is not None and any(item.form == "shared" or item.layer is holder for item in planned):
            problems.append(f"{name} keeps a slice of an earlier shared feedback: convert all of its layers together")
    return outputs if asked else {}


def _output_names(
    entries: list[Entry],
    ruled: dict[str, nn.Module],
    output: str | Sequence[str] | None,
    auxiliary: Sequence[str],
    problems: list[str],
) -> list[str]:
    """Names of the output layers: the user's, or else the last layer and known auxiliary heads.

    Problems are appended to `problems`.
    """
    if output is None:
        layers = [entry for entry in entries if entry.kind != "local"]
        if not layers:
            return []  # already reported: there is nothing to convert
        last = layers[-1]
        if last.name in ruled:
            return [*(name for name in auxiliary if name in ruled and name != last.name), last.name]
        why = last.reason or "it was given no rule"
        problems.append(f"the output layer cannot be inferred: the last layer is {last.name!r}, but {why}. {_CURE}")
        return []
    names = [output] if isinstance(output, str) else output
    if not isinstance(names, Sequence) or not names or not all(isinstance(name, str) for name in names):
        problems.append(f"output={output!r} is neither a layer's name nor a list of names")
        return []
    strange = [name for name in names if name not in ruled]
    problems += [f"{unknown('output layer', name, ruled)} {_CURE}" for name in strange]
    return [name for name in dict.fromkeys(names) if name in ruled]
