"""`audit`, which shows by experiment what a network's backward pass transports.

Flags and types prove nothing, because a layer can look converted without being so. The audit therefore overwrites the
weights and compares the gradients. Each pass repeats the same forward with some weights replaced by noise of equal
norm, and sets every activation back to its recorded value, so that gradients can differ only by what the backward
reads of the weights. `replay` has the passes, `meetings` says which parameters are weights.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from biotorch import _seeding
from biotorch.auditing.meetings import Meetings
from biotorch.auditing.noise import draw, learned_from_weights, overwritten, silenced
from biotorch.auditing.passes import Passes, input_of, output_of, uncompiled
from biotorch.auditing.replay import Comparing, Recording, Repeating, constant_results
from biotorch.auditing.rows import hears_own
from biotorch.auditing.units import Unit, units_of
from biotorch.auditing.verdicts import LEAK, Audit, LayerAudit, Verdict
from biotorch.conversion import nested
from biotorch.conversion.forms import possible_blocks
from biotorch.conversion.survey import survey
from biotorch.errors import AuditError
from biotorch.kernel import teaching
from biotorch.layers import FeedbackLayer, connections, feedback_type
from biotorch.layers.networks import isolated


def audit(model: nn.Module, inputs: Any, *, shortcuts: bool = True, seed: int = 0) -> Audit:
    """Measure for each weight of `model` whether the gradients upstream of it depend on nothing, signs or all of it.

    It works on any module, converted or not, in its present mode (train or eval). A weight is a parameter that mixes
    units, or a matrix computed from parameters alone and multiplied with activations, whatever computes it: a scale, a
    cast, a product, quantization. Parameters, `.grad`, buffers and the random state are left as they were. It costs six
    passes if nothing is transported, and two more for each layer otherwise, so use a small batch.

    Args:
        model: the network.
        inputs: a batch, given as a tensor, a tuple of positional arguments or a mapping of keyword arguments.
        shortcuts: whether to measure also the gradient that goes past the feedback, with one pass for every layer
            input. Without it `.shortcuts` is empty and every `.share` is 0.
        seed: seed of the noise and of the error vector (a random linear functional of the outputs).

    Raises:
        AuditError: a feedback layer never ran, no gradient flows, the passes do not repeat to the bit, or the
            parameters are sharded.
        RuntimeError: it is not known which rows of a direct layer belong to which example.

    Examples:
        >>> model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
        >>> print(biotorch.audit(biotorch.convert(model, "fa"), torch.randn(4, 8)))
        layer  transports  past feedback
        -----  ----------  -------------
        0      nothing     -
        2      nothing     -
        leak 0.00: all 2 layers transport nothing
        nothing is transported
    """
    return _Experiment(model, inputs, seed).run(shortcuts)


class _Experiment:
    def __init__(self, model: nn.Module, inputs: Any, seed: int) -> None:
        self.model = model
        self.seed = seed
        for connection in connections(model).values():
            connection.settle(at_once=True)
        self._inputs = inputs
        self.entries = {entry.name: entry for entry in survey(model)}
        self.parameters: list[Tensor] = list(model.parameters())
        if any(hasattr(parameter, "full_tensor") for parameter in self.parameters):
            raise AuditError("the parameters are sharded (FSDP2): audit the network before it is sharded")
        generator = _seeding.generator(seed)
        self.noise = [draw(parameter, generator) for parameter in self.parameters]
        self.layers = {
            name: each.module for name, each in self.entries.items() if isinstance(each.module, FeedbackLayer)
        }
        patterns = {pattern for layer in self.layers.values() for pattern in getattr(layer.rule, "blocks", ())}
        self.blocks = {
            name: block
            for name, block in possible_blocks(model, sorted(patterns)).items()
            if any(isinstance(module, FeedbackLayer) for module in block.modules())
        }
        self.names = {module: name for name, module in model.named_modules()}
        self.keys = keys = {id(parameter): key for key, parameter in enumerate(self.parameters)}
        #: Vectors that are all zero, such as the scale of a branch's last norm, and so let no gradient pass.
        self.zeros = [(p, torch.ones_like(p)) for p in self.parameters if p.dim() < 2 and not p.any()]
        #: The parameters (keys) of each layer of a type that has a feedback version.
        self.own = {
            each.module: frozenset(keys[id(parameter)] for parameter in each.module.parameters())
            for each in self.entries.values()
            if feedback_type(each.module) is not None or isinstance(each.module, FeedbackLayer)
        }
        #: All names of each parameter.
        self.called: dict[int, list[str]] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            self.called.setdefault(keys[id(parameter)], []).append(name)
        self.passes = Passes(model, inputs, seed, self.entries, {**self.layers, **self.blocks})

    def run(self, past_feedback: bool) -> Audit:
        device = self.parameters[0].device.type if self.parameters else "cpu"
        with (
            torch.inference_mode(False),
            torch.autocast(device, enabled=False),
            torch.enable_grad(),
            uncompiled(),
        ):
            direct = any(layer.rule.direct for layer in self.layers.values())
            heard = hears_own(self.model, self._inputs) if direct else {}
            self.recording = Recording(self.names, self._constant_results(), Meetings(self.parameters, self.own))
            baseline = self.passes.gradients(self.recording)
            self.units = units_of(self.entries, self.recording, self.names, self.keys, self.own)
            if not self.units:
                raise AuditError("the model has no weight matrix to audit")
            self._check(baseline)
            verdicts = self._verdicts()
            shares, shortcuts = self._shares(baseline) if past_feedback else ({}, {})
        layers = {
            unit.name: LayerAudit(
                verdicts[unit.name],
                shares.get(unit.name, 0.0),
                unit.name in self.passes.inner or unit.name not in self.passes.called,
                unit.reason,
                heard.get(unit.name),
            )
            for unit in self.units
            if not unit.presumed_local or verdicts[unit.name] != "nothing"
        }
        return Audit(layers, shortcuts, direct)

    def _constant_results(self) -> dict[tuple[int, Any], set[int]]:
        """The results that do not depend on the inputs, found by two passes on different inputs.

        They run on noise, so that weights that start at zero hide nothing.
        """
        pairs = [(each.weight, each.first) for each in self.noise if each.weight.dim() > 1]
        pairs += self.zeros
        given, passes = self.passes, (Comparing(self.names), Comparing(self.names))
        generator = _seeding.generator(self.seed + 2)
        others = nested.other(given.args, generator), nested.other(given.kwargs, generator)
        with contextlib.suppress(Exception):  # a network may refuse noise as its input, in any way
            for comparing, (args, kwargs) in zip(passes, ((given.args, given.kwargs), others), strict=True):
                args, kwargs = nested.differentiable(args, {}, ""), nested.differentiable(kwargs, {}, "")  # noqa: PLW2901
                targets = teaching.given(teaching.RandomTargets())
                with isolated(self.model, attributes=True), overwritten(pairs), targets, comparing:
                    self.model(*args, **kwargs)
        return constant_results(*passes)

    def _check(self, baseline: dict[str, Tensor]) -> None:
        met = {key for meeting in self.recording.meetings.found for key in meeting.origin.roots}
        idle = [
            name for name, layer in self.layers.items() if name not in self.passes.called and not self.own[layer] & met
        ]
        if idle:
            raise AuditError(
                f"the forward of {', '.join(idle)} never ran, so its rule has no effect: the inputs do not reach it"
            )
        bad = [name for name, gradient in baseline.items() if not torch.isfinite(gradient).all()]
        if bad:
            raise AuditError(f"non-finite gradients at {', '.join(bad)}: they cannot be compared")
        if not _equal(baseline, self.passes.gradients(Repeating(self.recording))):
            raise AuditError(
                "two identical passes give different gradients, so that a difference proves nothing: "
                "use torch.use_deterministic_algorithms(True)"
            )

    def _verdicts(self) -> dict[str, Verdict]:
        """Compare passes with different noise as weights, for a verdict on each unit.

        All of them run on noise, so that weights that start at zero hide nothing.
        """
        groups = [(unit, group) for unit in self.units for group in unit.groups]
        verdicts: dict[str, Verdict] = {unit.name: "unknown" if unit.opaque else "nothing" for unit in self.units}
        base = {key: "first" for _, group in groups for key in group}
        baseline = self._repeated(base)
        if baseline is None:  # the control flow depends on some weights: leave these as they are
            steady = [(unit, group) for unit, group in groups if self._repeated(dict.fromkeys(group, "first"))]
            for unit, group in groups:
                if (unit, group) not in steady:
                    verdicts[unit.name] = "unknown"
            groups = steady
            base = {key: "first" for _, group in groups for key in group}
            baseline = self._repeated(base)
        if baseline is None:
            return dict.fromkeys(verdicts, "unknown")
        unreached = [
            unit.name
            for unit in self.units
            if not baseline.get(output_of(unit.name), torch.ones(1)).any() and not self._is_shut_off(unit.name)
        ]
        if unreached:
            raise AuditError(f"no gradient reaches {', '.join(unreached)}, so the audit cannot see what is transported")

        def same(keys: Iterable[int], noise: str) -> bool | None:
            """Whether other noise leaves all gradients as they are, but those of parameters that compute a weight."""
            changed = set(keys)
            found = self._repeated(base | dict.fromkeys(changed, noise))
            if found is None:
                return None
            chain = changed.union(*(roots for _, roots in applied if roots & changed))
            touched = [(self.names[module], roots) for module, roots in applied if roots & chain]
            together = [*(unit.computing & changed for unit in self.units), *(roots for _, roots in touched)]
            own = {name for each in together for key in each for name in self.called[key]}
            own |= {place(name) for name, _ in touched for place in (input_of, output_of)}
            return _equal(_without(baseline, own), _without(found, own))

        def verdict(unit: Unit, group: frozenset[int]) -> Verdict:
            if clean and not unit.computing & group:
                return "nothing"
            match same(group, "second"):
                case None:
                    return "unknown"
                case True:
                    return "nothing"
            return "signs" if same(group, "signed") else "weights"

        applied = self.recording.meetings.applied
        clean = same(base, "second")
        for unit, group in groups:
            verdicts[unit.name] = _worse(verdicts[unit.name], verdict(unit, group))
        for module, roots in applied:
            if not roots - self.own[module]:
                continue
            # The experiment cannot tell here, because the layer's input changes with its weight.
            layer_rule = module.rule.transports if isinstance(module, FeedbackLayer) else "weights"
            verdicts[self.names[module]] = _worse(verdicts[self.names[module]], layer_rule)
        for name, layer in self.layers.items():
            verdicts[name] = _worse(verdicts.get(name, "nothing"), learned_from_weights(layer, self.seed))
        return verdicts

    def _repeated(self, noise: Mapping[int, str]) -> dict[str, Tensor] | None:
        """Gradients of a repetition on noise; None if the pass then computes something else, or fails."""
        pairs = [(self.parameters[key], getattr(self.noise[key], kind)) for key, kind in noise.items()]
        pairs += self.zeros
        try:
            return self.passes.gradients(Repeating(self.recording), pairs)
        except (AuditError, torch.linalg.LinAlgError):  # type: ignore[attr-defined]
            return None

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
        for names in list(self.passes.readers.values()):
            readers = {module for name in names for module in self._named(name).modules()}
            layers = [module for module in readers if isinstance(module, FeedbackLayer)]
            key = input_of(names[0])
            silent = not any(each.feedback_shape for layer in layers for each in layer.connections)
            if silent or key not in baseline:
                continue
            with silenced(layers):
                rest = self.passes.gradients()[key]
            past, total = rest.norm(), rest.norm() + (baseline[key] - rest).norm()
            share = (past / total).item() if total > 0 else 0.0
            shares.update({name: share for name in names if name in self.layers})
            if share > 0:
                blocks = [name for name in names if name in self.blocks]
                shortcuts.update(dict.fromkeys([max(blocks, key=len)] if blocks else names, share))
        return shares, shortcuts

    def _named(self, name: str) -> nn.Module:
        return self.blocks[name] if name in self.blocks else self.layers[name]


def _worse(first: Verdict, second: Verdict) -> Verdict:
    return max(first, second, key=list(LEAK).index)


def _without(gradients: dict[str, Tensor], names: set[str]) -> dict[str, Tensor]:
    return {name: gradient for name, gradient in gradients.items() if name.removesuffix(" after steps") not in names}


def _equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
