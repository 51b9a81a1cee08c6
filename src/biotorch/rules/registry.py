"""The registry of learning rules: from a name and options to a rule."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, get_args

from biotorch._names import unknown
from biotorch.rules import initial
from biotorch.rules.base import DirectRule, FeedbackRule, Rule, Transports

_REGISTRY: dict[str, type[Rule]] = {}
_ALIASES: dict[str, str] = {}
#: Options of a configuration for rules whose B is a parameter, and the optimizer's words for them.
_GROUP = {"feedback_rate": "lr", "feedback_decay": "weight_decay"}


def register(*names: str, transports: Transports) -> Callable[[type[Rule]], type[Rule]]:
    """Class decorator: make a rule known by its first name, and by the others as aliases.

    Args:
        names: the rule's name, and aliases.
        transports: what it carries backwards of W, or learns from it: `nothing`, `signs` or `weights`.

    Raises:
        TypeError: the class is no rule, or has options without being a dataclass.
        ValueError: no name, one that is taken, or another word for `transports`.
    """
    if not names:
        raise ValueError('a rule needs a name: @rules.register("name", transports=...)')
    initial.check("transports", transports, get_args(Transports))

    def add(rule: type[Rule]) -> type[Rule]:
        if not issubclass(rule, FeedbackRule | DirectRule):
            raise TypeError(f"{rule.__name__} must derive from FeedbackRule or DirectRule")
        options = [name for name, kind in vars(rule).get("__annotations__", {}).items() if "ClassVar" not in str(kind)]
        if options and "__dataclass_fields__" not in vars(rule):
            raise TypeError(
                f"{rule.__name__} has options ({', '.join(options)}) and is no dataclass: put "
                "@dataclasses.dataclass(frozen=True, kw_only=True) between @rules.register(...) and the class"
            )
        for name in names:
            if name in _REGISTRY or name in _ALIASES:
                module = get(name).__module__
                raise ValueError(
                    f"a rule named {name!r} is already registered, by module {module}: take another name, or import "
                    "the module by one path alone"
                )
        rule.name, rule.transports = names[0], transports
        _REGISTRY[names[0]] = rule
        _ALIASES.update(dict.fromkeys(names[1:], names[0]))
        return rule

    return add


def available() -> list[str]:
    """The names of all registered rules, aliases left out."""
    return sorted(_REGISTRY)


def is_known(name: str) -> bool:
    """Whether a rule has that name or alias."""
    return _ALIASES.get(name, name) in _REGISTRY


def get(name: str) -> type[Rule]:
    """The rule class of that name or alias. Raises ValueError naming the nearest valid name."""
    canonical = _ALIASES.get(name, name)
    if canonical not in _REGISTRY:
        raise unknown("rule", name, [*_REGISTRY, *_ALIASES])
    return _REGISTRY[canonical]


def option_names(name: str) -> list[str]:
    """The options that the rule of that name accepts."""
    return [field.name for field in dataclasses.fields(get(name))]


def group_options(name: str) -> list[str]:
    """The options of a configuration that make a parameter group for B of that rule; `make` does not take them."""
    return [option for option in _GROUP if get(name).learns and option not in option_names(name)]


def require_no_group_option(name: str, option: str) -> None:
    """Raises ValueError for one of `group_options`, with what to do instead."""
    if option in group_options(name):
        raise ValueError(
            f"{option!r} is no option of rule {get(name).name!r}, whose B is a parameter: give the optimizer a group "
            f'for B, {{"params": biotorch.feedback_parameters(model), "{_GROUP[option]}": ...}}, beside one of the '
            "other parameters; in a configuration it is an option of model.mode"
        )


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
        require_no_group_option(name, option)
        if option not in valid:
            raise unknown(f"option of rule {get(name).name!r}", option, valid)
    try:
        return get(name)(**options)
    except TypeError as error:  # a comparison of the wrong types, mostly, in a check of the rule's
        given = ", ".join(f"{option}={value!r}" for option, value in options.items())
        raise ValueError(f"rule {get(name).name!r} does not take {given}: {error}") from error
