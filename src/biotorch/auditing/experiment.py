"""`audit`, which shows by experiment what a network's backward pass transports.

Flags and types prove nothing, because a layer can look converted without being so. The audit therefore
overwrites the weights and compares the gradients. Each pass repeats the same forward with some weight matrices
replaced by noise of equal norm. The output of every layer is set back to its recorded value, so that all
activations are bit-equal and gradients can differ only by what the backward reads of the weights.
Overwriting before the forward also catches copies of the weights that a forward makes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from biotorch import _seeding
from biotorch.auditing.noise import after_steps, draw, learned_from_weights, overwritten, silenced
from biotorch.auditing.verdicts import LEAK, Audit, LayerAudit
from biotorch.conversion import nested
from biotorch.conversion.forms import possible_blocks
from biotorch.conversion.survey import Entry, is_known_local, survey, weight_matrices
from biotorch.errors import AuditError
from biotorch.kernel import teaching
from biotorch.kernel.functions import Cut
from biotorch.layers import FeedbackLayer, connections
from biotorch.layers.networks import isolated
from biotorch.rules import Transports


def audit(model: nn.Module, inputs: Any, *, shortcuts: bool = True, seed: int = 0) -> Audit:
    """Measure for each weight matrix of `model` whether the gradients upstream of it depend on nothing, signs or all.

    It works on any module, converted or not, in its present mode (train or eval). Parameters, `.grad`,
    buffers and the random state are left as they were. It costs two passes if nothing is transported,
    and two per layer otherwise, so use a small batch.

    Args:
        model: the network.
        inputs: a batch, given as a tensor, a tuple of positional arguments or a mapping of keyword arguments.
        shortcuts: whether to measure also the gradient that goes past the feedback, with one pass for every layer
            input. Without it `.shortcuts` is empty and every `.share` is 0.
        seed: seed of the noise and of the error vector (a random linear functional of the outputs).

    Raises:
        AuditError: a feedback layer never ran, no gradient flows, or the passes do not repeat to the bit.
    """
    return _Experiment(model, inputs, seed).run(shortcuts)


class _Experiment:
    def __init__(self, model: nn.Module, inputs: Any, seed: int) -> None:
        self.model = model
        self.seed = seed
        for connection in connections(model).values():
            connection.settle(at_once=True)
        self.args, self.kwargs = nested.arguments(inputs)
        entries = survey(model)
        generator = _seeding.generator(seed)
        self.units = {
            entry.name: [draw(weight, generator) for weight in weight_matrices(entry.module).values()]
            for entry in entries
            if not is_known_local(entry.module) and weight_matrices(entry.module)
        }
        #: Modules judged local by names and shapes; shown only if the experiment contradicts.
        self.presumed = {entry.name for entry in entries if entry.kind == "local" and entry.name in self.units}
        if not self.units:
            raise AuditError("the model has no weight matrix to audit")
        self.reasons = {entry.name: _reason(entry) for entry in entries}
        self.modules = {entry.name: entry.module for entry in entries}
        # Only a leaf's output can be set back without hiding what happens inside the module.
        self.leaves = {name: module for name, module in self.modules.items() if _is_leaf(module)}
        self.layers = {name: module for name, module in self.modules.items() if isinstance(module, FeedbackLayer)}
        patterns = {pattern for layer in self.layers.values() for pattern in getattr(layer.rule, "blocks", ())}
        self.blocks = {
            name: block
            for name, block in possible_blocks(model, sorted(patterns)).items()
            if any(isinstance(module, FeedbackLayer) for module in block.modules())
        }
        self.passes = 0
        #: The feedback layers whose forward has run.
        self.ran: set[nn.Module] = set()
        #: From the first pass: outputs of each leaf, call by call, and the names of all modules that read one input.
        self.recorded: dict[nn.Module, list[list[Tensor]]] = {}
        self.readers: dict[GradientEdge, list[str]] = {}
        #: Leaves whose input requires no gradient, so that nothing lies upstream of them.
        self.first: set[str] = set()

    def run(self, past_feedback: bool) -> Audit:
        device = next(self.model.parameters()).device.type
        with torch.autocast(device, enabled=False), torch.enable_grad():
            baseline = self._gradients()
            self._check(baseline)
            verdicts = self._verdicts()
            shares, shortcuts = self._shares(baseline) if past_feedback else ({}, {})
        layers = {
            name: LayerAudit(verdicts[name], shares.get(name, 0.0), name not in self.first, self.reasons[name])
            for name in self.units
            if name not in self.presumed or verdicts[name] != "nothing"
        }
        return Audit(layers, shortcuts, any(layer.rule.direct for layer in self.layers.values()))

    def _check(self, baseline: dict[str, Tensor]) -> None:
        idle = [name for name, layer in self.layers.items() if layer not in self.ran]
        if idle:
            raise AuditError(
                f"the forward of {', '.join(idle)} never ran, so its rule has no effect: another module may read "
                "the weights by a function call (as attention does), or the inputs do not reach the layer"
            )
        bad = [name for name, gradient in baseline.items() if not torch.isfinite(gradient).all()]
        if bad:
            raise AuditError(f"non-finite gradients at {', '.join(bad)}: they cannot be compared")
        if not _equal(baseline, self._gradients()):
            raise AuditError(
                "two identical passes give different gradients, so that a difference proves nothing: "
                "use torch.use_deterministic_algorithms(True)"
            )

    def _verdicts(self) -> dict[str, Transports]:
        """Compare passes with different noise as weights, for a verdict on each module.

        All of them run on noise, so that weights that start at zero hide nothing.
        """
        baseline = self._gradients({})
        unreached = [
            name
            for name in self.units
            if not baseline.get(_output_of(name), torch.ones(1)).any() and not self._is_shut_off(name)
        ]
        if unreached:
            raise AuditError(f"no gradient reaches {', '.join(unreached)}, so the audit cannot see what is transported")

        def same(names: Iterable[str], noise: str) -> bool:
            return _equal(baseline, self._gradients(dict.fromkeys(names, noise)))

        def verdict(name: str) -> Transports:
            if clean or same([name], "second"):
                return "nothing"
            return "signs" if signs_at_most or same([name], "signed") else "weights"

        clean = same(self.units, "second")
        signs_at_most = clean or same(self.units, "signed")
        verdicts = {name: verdict(name) for name in self.units}
        for name, layer in self.layers.items():
            verdicts[name] = max(verdicts[name], learned_from_weights(layer, self.seed), key=LEAK.__getitem__)
        return verdicts

    def _is_shut_off(self, name: str) -> bool:
        """Whether a layer gets no gradient on purpose, because its rule trains the output layer alone."""
        layer = self.layers.get(name)
        return layer is not None and layer.rule.trains_output_only

    def _shares(self, baseline: dict[str, Tensor]) -> tuple[dict[str, float], dict[str, float]]:
        """Measure the share of the gradient at the input of a layer or residual block that no feedback brought there.

        The feedback of all layers that read the input is set to zero for this (a block's first convolution together
        with its projection shortcut). At a block these are all of its layers, because a norm may stand in front.

        Returns:
            The shares by layer, and the shares above zero by block (by layer outside of known blocks).
        """
        shares, shortcuts = {}, {}
        for names in self.readers.values():
            readers = {module for name in names for module in self._named(name).modules()}
            layers = [module for module in readers if isinstance(module, FeedbackLayer)]
            key = _input_of(names[0])
            silent = not any(each.feedback_shape for layer in layers for each in layer.connections)
            if silent or key not in baseline:
                continue
            with silenced(layers):
                rest = self._gradients()[key]
            past, total = rest.norm(), rest.norm() + (baseline[key] - rest).norm()
            share = (past / total).item() if total > 0 else 0.0
            shares.update({name: share for name in names if name in self.layers})
            if share > 0:
                blocks = [name for name in names if name in self.blocks]
                shortcuts.update(dict.fromkeys([max(blocks, key=len)] if blocks else names, share))
        return shares, shortcuts

    def _named(self, name: str) -> nn.Module:
        return self.blocks[name] if name in self.blocks else self.layers[name]

    def _gradients(self, noise: Mapping[str, str] | None = None) -> dict[str, Tensor]:
        """Compute the gradients of all parameters, arguments, and inputs and outputs of layers.

        If `noise` is None, the network is used as it is. Otherwise every weight matrix is overwritten with the noise
        that `noise` names for its unit, by default "first".
        """
        before: dict[int, tuple[Tensor, Tensor]] = {}
        after: dict[int, tuple[Tensor, Tensor]] = {}
        if noise is not None:
            before = {id(p): (p, torch.ones_like(p)) for leaf in self.leaves.values() for p in _zero_vectors(leaf)}
            for name in sorted(self.units, key=lambda unit: unit in noise):  # a named unit wins if weights are tied
                # Only a leaf's output can be set back; weights of other modules are overwritten after the forward.
                group = before if self.modules[name] in self.recorded else after
                for options in self.units[name]:
                    group[id(options.weight)] = (options.weight, getattr(options, noise.get(name, "first")))
        targets: dict[str, Any] = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        with isolated(self.model), overwritten(before.values()), self._hooks(targets):
            args = nested.differentiable(self.args, targets, "args")
            kwargs = nested.differentiable(self.kwargs, targets, "kwargs")
            with teaching.given(teaching.RandomTargets()):
                outputs = self.model(*args, **kwargs)
            loss = nested.functional(outputs, _seeding.generator(self.seed + 1))
            with overwritten(after.values()):
                gradients = torch.autograd.grad(loss, list(targets.values()), allow_unused=True)
                found = {name: g for name, g in zip(targets, gradients, strict=True) if g is not None}
                return found | after_steps(self.model, found)

    @contextlib.contextmanager
    def _hooks(self, targets: dict[str, Any]) -> Iterator[None]:
        """Record the leaves' outputs (first pass) or set them back, and add inputs and outputs to `targets`."""
        first = self.passes == 0
        recorded: dict[nn.Module, list[list[Tensor]]] = {}

        def capture(name: str, args: tuple[Any, ...]) -> None:
            edge = _before_cut(args[0]) if args and isinstance(args[0], Tensor) else None
            if edge is None or _input_of(name) in targets:
                return
            targets[_input_of(name)] = edge
            if first:
                self.readers.setdefault(edge, []).append(name)

        def keep(name: str, leaf: nn.Module, args: Any, output: Any) -> None:
            if first and not any(tensor.requires_grad for tensor in nested.tensors(args)):
                self.first.add(name)
            tensors, calls = nested.tensors(output), recorded.setdefault(leaf, [])
            if first:
                calls.append([tensor.detach().clone() for tensor in tensors])
            else:
                calls.append(self.recorded[leaf][len(calls)])
                for tensor, value in zip(tensors, calls[-1], strict=True):
                    tensor.data.copy_(value)
            if name in self.units and tensors and tensors[0].requires_grad:
                targets.setdefault(_output_of(name), get_gradient_edge(tensors[0]))

        handles = [
            leaf.register_forward_hook(lambda leaf, args, output, name=name: keep(name, leaf, args, output))
            for name, leaf in self.leaves.items()
        ]
        handles += [
            layer.register_forward_hook(lambda layer, args, output: self.ran.add(layer))
            for layer in self.layers.values()
        ]
        handles += [
            module.register_forward_pre_hook(lambda module, args, name=name: capture(name, args))
            for name, module in {**self.layers, **self.blocks}.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        self.recorded, self.passes = recorded, self.passes + 1


def _reason(entry: Entry) -> str:
    if isinstance(entry.module, FeedbackLayer):
        return f"rule {entry.module.rule.name}"
    return entry.reason or "plain PyTorch, not converted"


def _input_of(name: str) -> str:
    return f"input of {name}"


def _output_of(name: str) -> str:
    return f"output of {name}"


def _is_leaf(module: nn.Module) -> bool:
    if isinstance(module, FeedbackLayer):
        return module.affine
    return all(name == "parametrizations" for name, _ in module.named_children())


def _zero_vectors(leaf: nn.Module) -> list[Tensor]:
    """Vectors that are all zero, such as the scale of a residual branch's last norm, and so let no gradient pass."""
    return [p for p in leaf._parameters.values() if p is not None and p.dim() < 2 and not p.any()]


def _before_cut(x: Tensor) -> GradientEdge | None:
    """The edge of `x` in the autograd graph, or the edge upstream of the cut if a residual block was cut there."""
    if not x.requires_grad:
        return None
    edge = get_gradient_edge(x)
    if type(edge.node) is Cut._backward_cls:
        upstream, index = edge.node.next_functions[0]
        return None if upstream is None else GradientEdge(upstream, index)
    return edge


def _equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
