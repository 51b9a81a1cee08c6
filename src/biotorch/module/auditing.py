"""`audit`: the proof by experiment of what a network's backward pass transports.

Reading flags or types proves nothing: a layer can look converted and not be. So the weights are
overwritten and the gradients watched. Each pass repeats the same forward with some weight matrices
replaced by noise of equal norm; the output of every layer is set back to what it was, so that all
activations are bit-equal and only what the backward reads of the weights can make a difference.
Overwriting before the forward also catches copies that a forward takes of its weights.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from biotorch import seeding
from biotorch.autograd import Cut
from biotorch.layers import FeedbackLayer
from biotorch.module.isolation import isolated
from biotorch.module.shortcuts import residual_blocks
from biotorch.module.survey import Entry, survey, weight_matrices
from biotorch.module.verdicts import LEAK, Audit, AuditError, LayerAudit
from biotorch.rules.base import Transports


def audit(model: nn.Module, inputs: Any, *, seed: int = 0) -> Audit:
    """Measure what of each weight matrix of `model` reaches the gradients upstream of it.

    Works on any module, converted or not, in the mode (train or eval) it is in. Parameters, `.grad`,
    buffers and the random state are left as they were. Costs two passes where nothing is transported
    and two per layer where something is: use a small batch.

    Args:
        model: the network.
        inputs: a batch: a tensor, a tuple of positional arguments, or a mapping of keyword arguments.
        seed: of the noise and of the error vector (a random linear functional of the outputs).

    Raises:
        AuditError: a feedback layer never ran, no gradient flows, or the passes do not repeat to the bit.
    """
    return _Experiment(model, inputs, seed).run()


class _Experiment:
    def __init__(self, model: nn.Module, inputs: Any, seed: int) -> None:
        self.model = model
        self.seed = seed
        self.args, self.kwargs = _arguments(inputs)
        entries = survey(model)
        self.units = [entry for entry in entries if entry.kind != "local" and weight_matrices(entry.module)]
        if not self.units:
            raise AuditError("the model has no weight matrix to audit")
        # Only a leaf's output can be set back without hiding what happens inside the module.
        self.leaves = [entry.module for entry in entries if _is_leaf(entry.module)]
        self.layers = {entry.name: entry.module for entry in entries if isinstance(entry.module, FeedbackLayer)}
        #: From the first pass: what each leaf returned, call by call, and which layers read one input.
        self.recorded: dict[nn.Module, list[Any]] = {}
        self.readers: dict[GradientEdge, list[str]] = {}

    def run(self) -> Audit:
        device = next(self.model.parameters()).device.type
        with torch.autocast(device, enabled=False), torch.enable_grad():
            baseline = self._gradients()
            self._check(baseline)
            verdicts = self._verdicts(baseline)
            for name, layer in self.layers.items():
                verdicts[name] = max(verdicts[name], self._update(layer), key=LEAK.__getitem__)
            shares = self._shares(baseline)
        blocks = residual_blocks(self.model)
        shortcuts = {_block_of(name, blocks): share for name, share in shares.items() if share > 0}
        layers = {name: LayerAudit(verdict, shares.get(name, 0.0)) for name, verdict in verdicts.items()}
        return Audit(layers, shortcuts)

    def _check(self, baseline: dict[str, Tensor]) -> None:
        idle = [name for name, layer in self.layers.items() if layer not in self.recorded]
        if idle:
            raise AuditError(
                f"converted in name only, the forward of {', '.join(idle)} never ran: another module may read "
                "its weights functionally (attention does), or the inputs do not reach it"
            )
        bad = [name for name, gradient in baseline.items() if not torch.isfinite(gradient).all()]
        if bad:
            raise AuditError(f"non-finite gradients at {', '.join(bad)}: nothing can be compared")
        if not any(gradient.any() for gradient in baseline.values()):
            raise AuditError("every gradient is zero: the outputs do not depend on the parameters")
        if not _equal(baseline, self._gradients()):
            raise AuditError(
                "two identical passes differ, so a difference proves nothing: "
                "use torch.use_deterministic_algorithms(True)"
            )

    def _verdicts(self, baseline: dict[str, Tensor]) -> dict[str, Transports]:
        def same(units: list[Entry], keep_signs: bool) -> bool:
            return _equal(baseline, self._gradients(units, keep_signs))

        if same(self.units, keep_signs=False):
            return {entry.name: "nothing" for entry in self.units}
        signs_at_most = same(self.units, keep_signs=True)
        verdicts: dict[str, Transports] = {}
        for entry in self.units:
            if same([entry], keep_signs=False):
                verdicts[entry.name] = "nothing"
            elif signs_at_most or same([entry], keep_signs=True):
                verdicts[entry.name] = "signs"
            else:
                verdicts[entry.name] = "weights"
        return verdicts

    def _update(self, layer: FeedbackLayer) -> Transports:
        """What the rule copies of W into B after an optimizer step, where no backward pass shows it."""
        if not layer.rule.has_update():
            return "nothing"

        def updated(weight: Tensor) -> Tensor:
            feedback = torch.empty(0) if layer.feedback is None else layer.feedback.detach().clone()
            with torch.no_grad():
                layer.rule.after_update(weight, feedback, seeding.generator(self.seed, weight.device))
            return feedback

        weight = layer.weight.detach().clone()
        generator = seeding.generator(self.seed)
        signs, noise = _noise(weight, True, generator), _noise(weight, False, generator)
        if torch.equal(updated(weight), updated(noise)):
            return "nothing"
        return "signs" if torch.equal(updated(weight), updated(signs)) else "weights"

    def _shares(self, baseline: dict[str, Tensor]) -> dict[str, float]:
        """For each layer with feedback, the share of its input's gradient that no feedback brought there.

        The layers that read the same input (a block's first convolution and its projection shortcut)
        have their feedback set to zero together.
        """
        shares = {}
        for names in self.readers.values():
            buffers = {id(b): b for name in names if (b := self.layers[name].feedback) is not None}
            key = _input_of(names[0])
            if not buffers or key not in baseline:
                continue
            with _overwritten((buffer, torch.zeros_like(buffer)) for buffer in buffers.values()):
                rest = self._gradients()[key]
            past, total = rest.norm(), rest.norm() + (baseline[key] - rest).norm()
            shares.update(dict.fromkeys(names, (past / total).item() if total > 0 else 0.0))
        return shares

    def _gradients(self, scrambled: list[Entry] | None = None, keep_signs: bool = False) -> dict[str, Tensor]:
        """Gradients of all parameters, inputs and layer inputs, with the weights of `scrambled` overwritten."""
        before: dict[int, tuple[Tensor, Tensor]] = {}
        after: dict[int, tuple[Tensor, Tensor]] = {}
        generator = seeding.generator(self.seed)
        for entry in scrambled or []:
            # The output of a composite module cannot be set back: overwrite its weights afterwards.
            group = before if entry.module in self.recorded else after
            for weight in weight_matrices(entry.module).values():
                group[id(weight)] = (weight, _noise(weight, keep_signs, generator))
        targets: dict[str, Any] = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        with isolated(self.model), _overwritten(before.values()), self._hooks(targets):
            args, kwargs = _differentiable(self.args, targets, "args"), _differentiable(self.kwargs, targets, "kwargs")
            loss = _functional(self.model(*args, **kwargs), seeding.generator(self.seed + 1))
            with _overwritten(after.values()):
                gradients = torch.autograd.grad(loss, list(targets.values()), allow_unused=True)
        return {name: g for name, g in zip(targets, gradients, strict=True) if g is not None}

    @contextlib.contextmanager
    def _hooks(self, targets: dict[str, Any]) -> Iterator[None]:
        """Record (first pass) or set back the leaves' outputs; add the layers' inputs to `targets`."""
        first, calls = not self.recorded, dict.fromkeys(self.leaves, 0)
        names: dict[nn.Module, str] = {layer: name for name, layer in self.layers.items()}
        seen: dict[nn.Module, list[Any]] = {}

        def capture(layer: nn.Module, args: tuple[Any, ...]) -> None:
            edge = _before_cut(args[0]) if args and isinstance(args[0], Tensor) else None
            if edge is not None:
                targets.setdefault(_input_of(names[layer]), edge)
                if first and names[layer] not in self.readers.setdefault(edge, []):
                    self.readers[edge].append(names[layer])

        def keep(leaf: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if first:
                seen.setdefault(leaf, []).append([tensor.detach().clone() for tensor in _tensors(output)])
                return
            for tensor, value in zip(_tensors(output), self.recorded[leaf][calls[leaf]], strict=True):
                tensor.data.copy_(value)
            calls[leaf] += 1

        handles = [leaf.register_forward_hook(keep) for leaf in self.leaves]
        handles += [layer.register_forward_pre_hook(capture) for layer in self.layers.values()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        if first:
            self.recorded = seen


def _block_of(name: str, blocks: Iterable[str]) -> str:
    """The innermost residual block that holds the layer `name`; the layer itself where none is known."""
    return max((block for block in blocks if name.startswith(f"{block}.")), key=len, default=name)


def _input_of(name: str) -> str:
    return f"input of {name}"


def _is_leaf(module: nn.Module) -> bool:
    return all(name == "parametrizations" for name, _ in module.named_children())


def _noise(weight: Tensor, keep_signs: bool, generator: torch.Generator) -> Tensor:
    """Noise of the norm of `weight`, with its signs if asked."""
    noise = torch.randn(weight.shape, generator=generator).to(weight)
    if keep_signs:
        noise = noise.abs() * weight.detach().sign()
    scaled: Tensor = noise * (weight.detach().norm() / noise.norm().clamp_min(torch.finfo(noise.dtype).tiny))
    return scaled


@contextlib.contextmanager
def _overwritten(pairs: Iterable[tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Through `.data`, so that autograd does not notice."""
    pairs = list(pairs)
    saved = [tensor.detach().clone() for tensor, _ in pairs]
    try:
        for tensor, value in pairs:
            tensor.data.copy_(value)
        yield
    finally:
        for (tensor, _), value in zip(pairs, saved, strict=True):
            tensor.data.copy_(value)


def _before_cut(x: Tensor) -> GradientEdge | None:
    """The edge of `x` in the graph; where a residual block was cut, the one upstream of the cut."""
    if not x.requires_grad:
        return None
    edge = get_gradient_edge(x)
    if type(edge.node) is Cut._backward_cls:
        upstream, index = edge.node.next_functions[0]
        return None if upstream is None else GradientEdge(upstream, index)
    return edge


def _arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs), {}) if isinstance(inputs, tuple | list) else ((inputs,), {})


def _differentiable(values: Any, targets: dict[str, Any], path: str) -> Any:
    """A copy of the arguments whose floating point tensors take part in the experiment."""
    if isinstance(values, dict):
        return {key: _differentiable(value, targets, f"{path}.{key}") for key, value in values.items()}
    if isinstance(values, tuple | list):
        return tuple(_differentiable(value, targets, f"{path}.{i}") for i, value in enumerate(values))
    if isinstance(values, Tensor) and values.is_floating_point():
        targets[path] = values.detach().clone().requires_grad_()
        return targets[path]
    return values


def _tensors(output: Any) -> list[Tensor]:
    """The floating point tensors in a module's output, in order."""
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    if isinstance(output, Mapping):
        output = list(output.values())
    if isinstance(output, tuple | list):
        return [tensor for part in output for tensor in _tensors(part)]
    return []


def _functional(output: Any, generator: torch.Generator) -> Tensor:
    """A random linear functional of what the model returns: its gradient is a random error vector."""
    tensors = [tensor for tensor in _tensors(output) if tensor.requires_grad]
    if not tensors:
        raise AuditError("no output requires a gradient: is everything frozen?")
    noises = (torch.randn(tensor.shape, generator=generator).to(tensor) for tensor in tensors)
    return torch.stack([(tensor * noise).sum() for tensor, noise in zip(tensors, noises, strict=True)]).sum()


def _equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
