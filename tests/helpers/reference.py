"""Every rule again, slowly, from the paper's equations (1) to (4), in float64.

Nothing of biotorch is imported and no autograd is used: a model is read as a list of layers, a layer as its
weight matrices, each with b and B (`reference_layers`), a matrix as the map it is of its input (`reference_maps`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from reference_layers import LAYERS, Read, scale
from torch import Tensor, nn

__all__ = ["LAYERS", "RULES", "Result", "run"]

#: phi and phi', elementwise.
ACTIVATIONS: dict[type[nn.Module], tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    nn.ReLU: (lambda z: z.clamp(min=0), lambda z: (z > 0).double()),
    nn.Tanh: (torch.tanh, lambda z: 1 - torch.tanh(z) ** 2),
}

#: How the gradient at one map's output becomes that handed to its input; e is dL/dz_N.
Transport = Callable[[Read, Tensor, Tensor], Tensor]


def backpropagation(read: Read, delta: Tensor, e: Tensor) -> Tensor:
    """Equation (2): W^T delta z."""
    return read.backwards_through(read.weight, delta)


def feedback_alignment(read: Read, delta: Tensor, e: Tensor) -> Tensor:
    """Equation (3): B delta z."""
    return read.backwards_through(read.feedback, delta)


def direct_feedback_alignment(read: Read, delta: Tensor, e: Tensor) -> Tensor:
    """Equation (4): B delta z_N."""
    return read.map.project(read.feedback, e)


def uniform_sign(read: Read, delta: Tensor, e: Tensor) -> Tensor:
    """Section 2.1: s sign(W), s the scale of the initializer (sections 2.1, 4)."""
    return read.backwards_through(scale(read.weight, read.init) * read.weight.sign(), delta)


def random_sign(read: Read, delta: Tensor, e: Tensor) -> Tensor:
    """Section 2.1: |R| sign(W)."""
    return read.backwards_through(read.feedback.abs() * read.weight.sign(), delta)


def random_targets(e: Tensor) -> Tensor:
    """What the tests give as targets: one-hot, the first class for the first example, and so on."""
    rows = torch.zeros_like(e).reshape(-1, e.shape[-1])
    for number, row in enumerate(rows):
        row[number % e.shape[-1]] = 1
    return rows.reshape(e.shape)


def target_projection(read: Read, delta: Tensor, e: Tensor) -> Tensor:
    """Frenkel et al. 2021, equation 4: -B y*, where the loss is the sum over examples."""
    return -read.map.project(read.feedback, random_targets(e))


def error_sign(read: Read, delta: Tensor, e: Tensor) -> Tensor:
    """Frenkel et al. 2021, section 2: B sign(e), where the loss is the sum over examples."""
    return read.map.project(read.feedback, e.sign())


def nothing(read: Read, delta: Tensor, e: Tensor) -> Tensor:
    """Only the output layer learns."""
    return read.backwards_through(torch.zeros_like(read.weight), delta)


RULES: dict[str, Transport] = {
    "backpropagation": backpropagation,
    "fa": feedback_alignment,
    "dfa": direct_feedback_alignment,
    "usf": uniform_sign,
    "brsf": random_sign,
    "frsf": random_sign,
    # Between two updates the learned B is as fixed as a random one: reference_updates.py has how it learns.
    **dict.fromkeys(("kp", "wm", "sa", "ia", "sham"), feedback_alignment),
    "dkp": direct_feedback_alignment,
    "drtp": target_projection,
    "sdfa": error_sign,
    "shallow": nothing,
}

#: What each rule carries backwards of W, or learns from it.
TRANSPORTS = {
    **dict.fromkeys(("backpropagation", "sa", "sham"), "weights"),
    **dict.fromkeys(("brsf", "frsf", "usf"), "signs"),
    **dict.fromkeys(("dfa", "dkp", "drtp", "fa", "ia", "kp", "sdfa", "shallow", "wm"), "nothing"),
}


class Result(NamedTuple):
    output: Tensor
    gradients: dict[str, Tensor]  # by parameter name
    input_gradient: Any  # a tensor, or a tuple of them where the first layer takes several inputs


def run(
    model: nn.Sequential, inputs: Any, output_gradient: Tensor, rule: str, init: str = "xavier", clip: bool = False
) -> Result:
    """Output and gradients of a sequence of layers, activations and Flatten, given dL/d output.

    A layer may stand inside a module that calls it, as the module's `layer`.
    """
    seen: list[tuple[str, nn.Module, Any]] = []  # what each step saw
    value = inputs
    for name, module in model.named_children():
        layer = getattr(module, "layer", module)
        kind = next((kind for kind in reversed(LAYERS) if isinstance(layer, kind)), None)  # the most special first
        if kind is not None:
            prefix = name if layer is module else f"{name}.layer"
            step = LAYERS[kind](layer, value, init, module)
            seen.append((prefix, module, step))
            value = step.forward()
        else:
            seen.append((name, module, value))
            flat = type(module) is nn.Flatten
            value = value.flatten(module.start_dim) if flat else ACTIVATIONS[type(module)][0](value)
    gradients, delta, e = {}, output_gradient, None

    def hand(read: Read, delta: Tensor) -> Tensor:
        handed = RULES[rule](read, delta, e)
        return handed.clamp(-1, 1) if clip else handed

    for prefix, module, step in reversed(seen):
        if isinstance(step, Tensor):  # an activation or Flatten
            slope = 1 if type(module) is nn.Flatten else ACTIVATIONS[type(module)][1](step)
            delta = delta.reshape(step.shape) * slope
            continue
        e = step.error(delta) if e is None else e
        delta, found = step.backward(delta, hand)
        gradients |= {f"{prefix}.{parameter}": gradient for parameter, gradient in found.items()}
    return Result(value, gradients, delta)
