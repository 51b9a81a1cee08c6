"""What a learning rule is, and the registry of rules."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

from torch import Generator, Tensor

from biotorch.names import unknown
from biotorch.rules import initial

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

    def initial_feedback(self, weight: Tensor, blank: Tensor, generator: Generator) -> Tensor | None:
        """B of one layer at conversion, which becomes its buffer `feedback`; None if the rule has none.

        `blank` is an empty tensor in the shape of B to fill: that of W for a feedback rule,
        (n_out, C_in, *kernel_size) for a direct one.
        """
        return None

    def after_update(self, weight: Tensor, state: Tensor | None, generator: Generator) -> None:
        """Called once after every optimizer step on `weight`; may change `state`, the layer's B, in place."""

    @classmethod
    def has_update(cls) -> bool:
        """Whether `after_update` does anything; layers of other rules are never visited."""
        return cls.after_update is not Rule.after_update


class FeedbackRule(Rule):
    """A rule that goes backwards layer by layer, with `feedback(W, B)` in the place of W."""

    def feedback(self, weight: Tensor, state: Tensor | None) -> Tensor:
        """The effective B, in the shape of `weight`. Evaluated in the backward pass."""
        raise NotImplementedError


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

    @property
    def needs_network(self) -> str:
        return f"feedback={self.feedback!r}" if self.feedback != "kernel" else "points" if self.points else ""


_REGISTRY: dict[str, type[Rule]] = {}
_ALIASES: dict[str, str] = {}


def register(*names: str, transports: Transports) -> Callable[[type[Rule]], type[Rule]]:
    """Class decorator: make a rule known by its first name, and by the others as aliases."""

    def add(rule: type[Rule]) -> type[Rule]:
        if not issubclass(rule, FeedbackRule | DirectRule):
            raise TypeError(f"{rule.__name__} must derive from FeedbackRule or DirectRule")
        for name in names:
            if name in _REGISTRY or name in _ALIASES:
                raise ValueError(f"a rule named {name!r} is already registered")
        rule.name, rule.transports = names[0], transports
        _REGISTRY[names[0]] = rule
        _ALIASES.update(dict.fromkeys(names[1:], names[0]))
        return rule

    return add


def available() -> list[str]:
    """The names of all registered rules, aliases left out."""
    return sorted(_REGISTRY)


def get(name: str) -> type[Rule]:
    """The rule class of that name or alias. Raises ValueError naming the nearest valid name."""
    canonical = _ALIASES.get(name, name)
    if canonical not in _REGISTRY:
        raise unknown("rule", name, [*_REGISTRY, *_ALIASES])
    return _REGISTRY[canonical]


def option_names(name: str) -> list[str]:
    """The options that the rule of that name accepts."""
    return [field.name for field in dataclasses.fields(get(name))]


def from_layer_config(layer_config: Mapping[str, Any] | None, default: str) -> Rule:
    """The rule of the first system's `{"type": ..., "options": {...}}`; `default` where it names none.

    Raises:
        ValueError: another key, rule or option, or a type that contradicts `default`.
    """
    config = {} if layer_config is None else layer_config
    if not isinstance(config, Mapping):
        raise ValueError(f'layer_config is a mapping {{"type": ..., "options": {{...}}}}, not {config!r}')
    for key in config:
        if key not in ("type", "options"):
            raise unknown("key of layer_config", key, ("type", "options"))
    kind = config.get("type") or default
    if get(kind) is not get(default):
        raise ValueError(f"layer_config asks for {kind!r} where {default!r} is: give one of them")
    return make(kind, **(config.get("options") or {}))


def make(name: str, **options: Any) -> Rule:
    """The rule of that name with these options.

    Raises:
        ValueError: no such rule, option or value; the message names the nearest valid one.
    """
    valid = option_names(name)
    for option in options:
        if option not in valid:
            raise unknown(f"option of rule {get(name).name!r}", option, valid)
    return get(name)(**options)
