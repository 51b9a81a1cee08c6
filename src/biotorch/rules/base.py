"""Base classes of the learning rules."""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from torch import Generator, Tensor

from biotorch.kernel.teaching import Targets
from biotorch.rules import initial
from biotorch.rules.update import Update

#: The part of the forward weights that a rule carries backwards, as `biotorch.audit` measures it.
Transports = Literal["nothing", "signs", "weights"]
#: Options of every rule with a B that distort how the backward pass reads B.
IMPERFECTIONS = ("bits", "noise", "dead")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """A learning rule with its options: it decides how an error travels from a layer's output to its input.

    A rule is immutable, and one object serves every layer of a network. Whatever differs by layer (B, its seed)
    is kept on the layer. Options common to all rules:

    Args:
        init: initializer of W and B: `xavier`, `kaiming` (PyTorch's default) or `normal`.
        feedback_init: initializer of B alone, or `weight`, which starts B at W. Default: `init`.
        gradient_clip: clamp the gradient handed to a layer's input to [-1, 1].
        constrain_weights: after every update rescale W in place to the norm it started with
            (Moskovitz et al. 2018).
        bits: number of bits, at most 16, with which the backward pass reads each entry of B (`kernel.imperfection`);
            None for all of them.
        noise: standard deviation s of the factors N(1, s^2) of the entries of B, drawn anew at each use.
        dead: share of the entries of B that are read as zero, the same ones for good.

    The last three are what analog hardware does to B. B itself stays exact, also where it learns.

    Raises:
        ValueError: an initializer's name is unknown, a switch is neither true nor false, a number is out of range, or a
            rule without B is given one of the last three options.

    Examples:
        >>> rule = biotorch.rules.make("fa", gradient_clip=True)
        >>> isinstance(rule, biotorch.rules.Rule), rule.name, rule.transports, rule.gradient_clip
        (True, 'fa', 'nothing', True)
    """

    init: str = "xavier"
    feedback_init: str | None = None
    gradient_clip: bool = False
    constrain_weights: bool = False
    bits: int | None = None
    noise: float = 0.0
    dead: float = 0.0

    name: ClassVar[str]
    #: The name in words, for listings, pages and drawings; it finds the rule, too. Default: the words of the class's
    #: name.
    title: ClassVar[str]
    transports: ClassVar[Transports]
    #: Whether the error comes straight from the output layer.
    direct: ClassVar[bool] = False
    #: Whether only the output layer is trained; conversion then freezes the parameters in front of it.
    trains_output_only: ClassVar[bool] = False
    #: Whether the rule has feedback weights B.
    has_feedback: ClassVar[bool] = True
    #: Whether the rule has not (yet) reached its paper's results here; docs/log.md says what was tried.
    experimental: ClassVar[bool] = False
    #: Whether B is a parameter that the user's optimizer updates. The backward pass gives B the gradient of W (feedback
    #: rules) or the product of error and input (direct rules).
    learns: ClassVar[bool] = False

    #: Whether `after_update` draws B anew from `update.generator` alone, so that a B which nobody uses is not drawn.
    redraws: ClassVar[bool] = False

    @property
    def needs_network(self) -> str:
        """The option that needs a whole network, so that no single layer can be built with it; empty if none."""
        return ""

    @property
    def needs_parameter(self) -> str:
        """The reason why W cannot be computed from other tensors under the rule, with the cure; empty if it can.

        What answers updates of W, or is updated like W, needs a W that an optimizer updates.
        """
        if not (self.learns or self.has_update() or self.constrain_weights):
            return ""
        what = "constrain_weights" if self.constrain_weights else f"rule {self.name!r}"
        return (
            f"its weight is computed from other tensors (pruning, weight_norm, a parametrization), but {what} needs "
            "a weight that is a parameter: make it one again (prune.remove, parametrize.remove_parametrizations), or "
            "use a rule that does not change B, such as fa or usf"
        )

    def __post_init__(self) -> None:
        initial.check("init", self.init, initial.INITS)
        initial.check("feedback_init", self.feedback_init, initial.FEEDBACK_INITS)
        for switch in ("gradient_clip", "constrain_weights"):
            if not isinstance(getattr(self, switch), bool):
                raise ValueError(f"{switch} is true or false, not {getattr(self, switch)!r}")
        if self.bits is not None:
            self.require_number("bits", most=16, whole=True)
        self.require_number("noise", zero=True)
        self.require_number("dead", most=1, zero=True)
        if self.is_imperfect and not self.has_feedback:
            raise self.no_feedback()

    @classmethod
    def no_feedback(cls) -> ValueError:
        """The error that the rule has no B to distort."""
        return ValueError(
            f"{cls.name} has no feedback weights B, so it takes none of {', '.join(IMPERFECTIONS)} (sham, which is "
            "backpropagation through a copy of W, takes them)"
        )

    @property
    def is_imperfect(self) -> bool:
        """Whether the backward pass reads B with few bits, with noise or with dead entries."""
        return self.bits is not None or bool(self.noise or self.dead)

    @property
    def feedback_distribution(self) -> str:
        """The initializer of B."""
        return self.feedback_init or self.init

    def initial_feedback(
        self, weight: Tensor, blank: Tensor, generator: Generator
    ) -> Tensor | Mapping[str, Tensor] | None:
        """Create B of one layer at conversion, which becomes the layer's `feedback`; None if the rule has no B.

        `blank` is an empty tensor to fill, in the shape of B: the shape of W for a feedback rule,
        (n_out, C_in, *kernel_size) for a direct one. A feedback rule whose B is made of several tensors returns a
        mapping of names to tensors; they become `feedback_<name>`.
        """
        return None

    def after_update(self, update: Update) -> None:
        """Change B in place after an update of W. Called once per update, at the next use of B."""

    def check_decay(self, layer: str, decay: float | None) -> None:
        """Check the `weight_decay` of W's optimizer (None if it has none). Called once per layer whose B learns."""

    def require_number(self, *options: str, most: float = math.inf, whole: bool = False, zero: bool = False) -> None:
        """Require that each option is a finite number above 0 and at most `most`; whole if `whole`.

        With `zero` it may be 0, too. A number of NumPy becomes one of Python.

        Raises:
            ValueError: an option is another value.
        """
        for option in options:
            value = getattr(self, option)
            number = isinstance(value, numbers.Integral if whole else numbers.Real) and not isinstance(value, bool)
            if not number or not (0 < value < math.inf or (zero and value == 0)) or value > most:
                kind = "whole number" if whole else "number"
                bound = ("of at least 0" if zero else "above 0") + (f" and at most {most:g}" if most < math.inf else "")
                raise ValueError(f"{option} is a {kind} {bound}, not {value!r}")
            plain = int(value) if isinstance(value, numbers.Integral) else float(value)
            object.__setattr__(self, option, plain)

    @classmethod
    def has_update(cls) -> bool:
        """Whether the rule defines `after_update`. Updates of W are tracked only under such rules."""
        return cls.after_update is not Rule.after_update


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomFeedback(Rule):
    """A rule whose B is random, or starts so. The layer applies both options to what `initial_feedback` returns.

    A B that learns only starts with this scale and density; its zeros fill in as it learns.

    Args:
        feedback_scale: factor on B. Zeros are not made up for: 1 / density keeps the mean magnitude of a dense B, as in
            the code of Crafton et al.
        feedback_density: share of the entries of B that are not zero (Crafton et al. 2019), the same for every place
            of a layer's input up to rounding (`initial.thinned`). The other entries have the values of a dense B.

    Raises:
        ValueError: the scale is not a finite number above 0, or the density is not above 0 and at most 1.

    Examples:
        >>> layer = biotorch.convert(nn.Linear(10, 10), "fa", feedback_density=0.2)
        >>> layer.feedback.count_nonzero().item()
        20
    """

    feedback_scale: float = 1.0
    feedback_density: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_number("feedback_scale")
        self.require_number("feedback_density", most=1)

    def sized(self, feedback: Tensor, generator: Generator) -> Tensor:
        """B with the scale and the density of the options; B itself if both are 1."""
        scaled = feedback if self.feedback_scale == 1 else feedback * self.feedback_scale
        return initial.thinned(scaled, self.feedback_density, generator)


class FeedbackRule(Rule):
    """A rule whose error goes backwards layer by layer, with `feedback(W, B)` in the place of W.

    Examples:
        >>> rule = biotorch.rules.make("usf")
        >>> isinstance(rule, biotorch.rules.FeedbackRule), rule.direct
        (True, False)
    """

    def feedback(self, weight: Tensor, state: Any) -> Tensor:
        """The B that the backward pass uses, in the shape of `weight`; by default `state` itself.

        `state` is what `initial_feedback` returned. A single tensor is evaluated in the backward pass; several tensors
        are evaluated in the forward pass, with `weight` detached.
        """
        if state is None:
            raise NotImplementedError(f"{type(self).__name__} must define feedback(weight, state), because it has no B")
        return state  # type: ignore[no-any-return]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DirectRule(RandomFeedback):
    """A rule that projects the output layer's error straight to each layer (paper, equation 4).

    Args:
        feedback: the form of B. `kernel`: (n_out, C_in, *kernel_size), applied to the error of each place, or held
            constant over space if the output is no image (the paper's code). `dense`: (n_out, C_in * positions) for
            convolutions (Nøkland 2016), made for one input size; n_out counts every value of an output image.
            `shared`: one matrix for the whole network, of which every layer takes the first columns at its own scale
            (Launay et al. 2019), for large outputs.
        points: one name pattern or several (`layer1.*`, `encoder.layers.*`) of blocks. The error then arrives at the
            input of each block instead of at every layer in it; inside the block gradients go by backpropagation
            ("macro" DFA, Launay et al. 2020). Among nested modules that match, the outermost counts.
        shortcuts: `keep` leaves identity shortcuts as they are, so that gradient travels along them, as in
            the paper's ResNet figures. `cut` is strict: only the broadcast error crosses the boundary of
            a residual block.
        blocks: one name pattern or several (`layer1.*`) of residual blocks to cut, in addition to the blocks of
            the common families, which are known.

    Raises:
        ValueError: `feedback` or `shortcuts` has another value, or a pattern is not a string.

    Examples:
        >>> model = biotorch.convert(nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 3)), "dfa", feedback="shared")
        >>> biotorch.summary(model).rows[0].feedback
        ((3, 8),)
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
            object.__setattr__(self, option, (patterns,) if isinstance(patterns, str) else tuple(patterns))

    def signal(self, error: Tensor, targets: Targets) -> Tensor:
        """The tensor that B projects in the place of the output's error (*positions, n_out), in the same shape."""
        return error

    @classmethod
    def has_signal(cls) -> bool:
        """Whether the rule sends something else than the error."""
        return cls.signal is not DirectRule.signal

    @property
    def needs_network(self) -> str:
        return f"feedback={self.feedback!r}" if self.feedback != "kernel" else "points" if self.points else ""
