"""The base of learning rules, and what a rule sees of an update."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Generator, Tensor

from biotorch.kernel.teaching import Targets
from biotorch.rules import initial


class Update:
    """One update of W, for the rules that redraw their B or let it follow W.

    Activity travels; reading `weight` is weight transport: `biotorch.audit` replaces it by noise and looks whether B
    becomes another.

    Attributes:
        weight: W after the update, (out, in, ...).
        feedback: B, to be changed in place; tensors by name where it is made of several.
        layer: its dotted name, for messages.
        number: 1 for the first update since the conversion.
        groups: those of a convolution; 1 elsewhere.
    """

    def __init__(
        self,
        weight: Tensor,
        feedback: Any,
        draw: Callable[[], Generator],
        *,
        layer: str = "",
        number: int = 1,
        groups: int = 1,
        forward: Tensor | None = None,
    ) -> None:
        self.weight, self.feedback, self._draw = weight, feedback, draw
        self.layer, self.number, self.groups = layer, number, groups
        self._forward = weight if forward is None else forward

    @functools.cached_property
    def generator(self) -> Generator:
        """The layer's own, for this update: the same on every process and in a resumed run."""
        return self._draw()

    def noise(self, n: int) -> Tensor:
        """n patterns of N(0, 1) noise at the layer's input (a convolution: at one position), (n, fan_in)."""
        fan_in = self._forward[0].numel()
        fresh = torch.empty(n, fan_in, device=self.generator.device).normal_(generator=self.generator)
        return fresh.to(self._forward)

    def respond(self, x: Tensor) -> Tensor:
        """What the layer answers to activity (n, fan_in) at its input, bias off: x W^T, (n, out)."""
        return x @ self._forward.flatten(1).T


#: What a rule carries backwards of the forward weights; `biotorch.audit` measures it.
Transports = Literal["nothing", "signs", "weights"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """A learning rule with its options: how an error travels from a layer's output to its input.

    Immutable; one object serves every layer of a network. What differs by layer (B, its seed) lives
    on the layer. Options common to all rules:

    Args:
        init: initializer of W and B: `xavier`, `kaiming` (PyTorch's default) or `normal`.
        feedback_init: initializer of B alone, or `weight` (B starts at W). Default: `init`.
        gradient_clip: clamp the gradient handed to a layer's input to [-1, 1].
        constrain_weights: after every update rescale W in place to the norm it started with
            (Moskovitz et al. 2018).

    Raises:
        ValueError: an initializer of that name does not exist, or a switch is neither true nor false.
    """

    init: str = "xavier"
    feedback_init: str | None = None
    gradient_clip: bool = False
    constrain_weights: bool = False

    name: ClassVar[str]
    transports: ClassVar[Transports]
    #: True where the error comes straight from the output layer.
    direct: ClassVar[bool] = False
    #: True where the output layer alone is trained: conversion freezes the parameters in front of it.
    trains_output_only: ClassVar[bool] = False
    #: True for a rule that has not (yet) done here what its paper reports: docs/log.md says what was tried.
    experimental: ClassVar[bool] = False
    #: True where B descends by a gradient: it is a parameter, to which the backward pass hands that of W (feedback
    #: rules) or the product of error and input (direct rules), and the user's optimizer does the rest.
    learns: ClassVar[bool] = False

    @property
    def needs_network(self) -> str:
        """The option that concerns a whole network, so that no layer can be built with it alone; empty if none."""
        return ""

    def __post_init__(self) -> None:
        initial.check("init", self.init, initial.INITS)
        initial.check("feedback_init", self.feedback_init, initial.FEEDBACK_INITS)
        for switch in ("gradient_clip", "constrain_weights"):
            if not isinstance(getattr(self, switch), bool):
                raise ValueError(f"{switch} is true or false, not {getattr(self, switch)!r}")

    @property
    def feedback_distribution(self) -> str:
        """The initializer of B."""
        return self.feedback_init or self.init

    def initial_feedback(
        self, weight: Tensor, blank: Tensor, generator: Generator
    ) -> Tensor | Mapping[str, Tensor] | None:
        """B of one layer at conversion, which becomes its `feedback`; None if the rule has none.

        `blank` is an empty tensor in the shape of B to fill: that of W for a feedback rule,
        (n_out, C_in, *kernel_size) for a direct one. A feedback rule whose B is made of several tensors returns them by
        name; they become `feedback_<name>`.
        """
        return None

    def after_update(self, update: Update) -> None:
        """Called once after every update of W, at the next use of B; may change B in place."""

    def check_decay(self, layer: str, decay: float | None) -> None:
        """Called once per layer whose B learns, with the `weight_decay` of W's optimizer, None where it has none."""

    def require_number(self, *options: str, most: float = math.inf, whole: bool = False, zero: bool = False) -> None:
        """Raises ValueError for an option that is no finite number above 0, at most `most`, whole if asked.

        `zero`: it may be 0.
        """
        for option in options:
            value = getattr(self, option)
            number = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
            if not number or not (0 < value < math.inf or (zero and value == 0)) or value > most:
                kind = "whole number" if whole else "number"
                bound = ("of at least 0" if zero else "above 0") + (f" and at most {most:g}" if most < math.inf else "")
                raise ValueError(f"{option} is a {kind} {bound}, not {value!r}")

    @classmethod
    def has_update(cls) -> bool:
        """Whether `after_update` does anything; updates of other rules' weights are not looked for."""
        return cls.after_update is not Rule.after_update


class FeedbackRule(Rule):
    """A rule that goes backwards layer by layer, with `feedback(W, B)` in the place of W."""

    def feedback(self, weight: Tensor, state: Any) -> Tensor:
        """The effective B, in the shape of `weight`, of what `initial_feedback` returned: `state` itself by default.

        Evaluated in the backward pass; where there are several tensors, in the forward pass, with `weight` detached.
        """
        if state is None:
            raise NotImplementedError(f"{type(self).__name__} says no feedback(weight, state), and has no B")
        return state  # type: ignore[no-any-return]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DirectRule(Rule):
    """A rule that projects the output layer's error straight to each layer (paper, equation 4).

    Args:
        feedback: the form of B. `kernel`: that of one output position, (n_out, C_in, *kernel_size), applied to the
            error held constant over space (the paper's code). `dense`: (n_out, C_in * positions) for convolutions
            (Nokland 2016), made for one input size. `shared`: one matrix for the whole network, of which every layer
            takes the first columns at its own scale (Launay et al. 2019): for large outputs.
        points: name patterns (`layer1.*`, `encoder.layers.*`), or one, of blocks at whose input the error arrives,
            instead of at every layer in them: inside such a block gradients go by backpropagation ("macro" DFA,
            Launay et al. 2020). The outermost modules that match count.
        shortcuts: `keep` leaves identity shortcuts as they are: gradient travels along them, which is
            what the paper's ResNet figures contain. `cut` is strict: nothing but the broadcast error
            crosses the boundary of a residual block.
        blocks: name patterns (`layer1.*`), or one, of the residual blocks to cut, beside those of the common
            families, which are known.

    Raises:
        ValueError: another value of `feedback` or `shortcuts`, patterns that are no names.
    """

    feedback: str = "kernel"
    points: tuple[str, ...] | str = ()
    shortcuts: str = "keep"
    blocks: tuple[str, ...] | str = ()

    direct: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        initial.check("feedback", self.feedback, ("kernel", "dense", "shared"))
        initial.check("shortcuts", self.shortcuts, ("keep", "cut"))
        for option in ("points", "blocks"):
            patterns = getattr(self, option)
            if not isinstance(patterns, str | list | tuple) or not all(isinstance(name, str) for name in patterns):
                raise ValueError(f"{option} is a name pattern or a list of them, not {patterns!r}")
            # One pattern, or a YAML list, is welcome.
            object.__setattr__(self, option, (patterns,) if isinstance(patterns, str) else tuple(patterns))

    def signal(self, error: Tensor, targets: Targets) -> Tensor:
        """What is projected in the place of the output's error (*positions, n_out), in its shape."""
        return error

    @classmethod
    def has_signal(cls) -> bool:
        """Whether `signal` is anything but the error."""
        return cls.signal is not DirectRule.signal

    @property
    def needs_network(self) -> str:
        return f"feedback={self.feedback!r}" if self.feedback != "kernel" else "points" if self.points else ""
