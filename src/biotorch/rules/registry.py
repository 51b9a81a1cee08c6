"""The registry of learning rules, which makes a rule from a name and options."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, get_args

from biotorch._names import nearest, unknown
from biotorch.errors import shortened
from biotorch.rules import initial
from biotorch.rules.base import IMPERFECTIONS, DirectRule, FeedbackRule, Rule, Transports

_REGISTRY: dict[str, type[Rule]] = {}
_ALIASES: dict[str, str] = {}
#: Order of the rules in every table, figure and listing: backpropagation and the other five rules of the paper, learned
#: feedback, experimental direct feedback, controls.
_ORDER = (
    "backpropagation", "fa", "dfa", "usf", "brsf", "frsf",
    "kp", "wm", "ia", "sa", "dkp", "sdfa", "drtp", "shallow", "sham",
)  # fmt: skip
#: Options of a configuration for rules whose B is a parameter, with the optimizer's names for them.
_GROUP = {"feedback_rate": "lr", "feedback_decay": "weight_decay"}


def register(*names: str, transports: Transports) -> Callable[[type[Rule]], type[Rule]]:
    """Class decorator that registers a rule.

    Args:
        names: the rule's name, then other names of it. Its title and the class's name find it, too; see `own_name`.
        transports: the part of W that the rule carries backwards, or learns B from: `nothing`, `signs` or `weights`.

    Raises:
        TypeError: the class is no rule, has options without being a dataclass, or has an option named `bits`, `noise`
            or `dead`, which every rule has.
        ValueError: there is no name, a name is taken, or `transports` has another value. A cell of a notebook may be
            run again: its rule replaces the earlier one of that name.

    Examples:
        >>> @biotorch.rules.register("negative", transports="weights")
        ... class Negative(biotorch.rules.FeedbackRule):
        ...     def feedback(self, weight, state):
        ...         return -weight
        >>> biotorch.convert(nn.Linear(4, 3), "negative").rule.name
        'negative'
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
                f"{rule.__name__} has options ({', '.join(options)}) but is not a dataclass: put "
                "@dataclasses.dataclass(frozen=True, kw_only=True) between @rules.register(...) and the class"
            )
        if clashes := [name for name in options if name in IMPERFECTIONS]:
            raise TypeError(
                f"{rule.__name__} has an option {clashes[0]}, but bits, noise and dead are options of every rule, and "
                "distort B: give it another name"
            )
        for name in names:
            if (taken := _named(name, _given())) is not None and not _again(_REGISTRY[taken], rule):
                module = _REGISTRY[taken].__module__
                raise ValueError(
                    f"a rule named {name!r} is already registered, by module {module}: choose another name. If it is "
                    "the same rule, import its module by one path only"
                )
        rule.name, rule.transports = names[0], transports
        if "title" not in vars(rule):  # a subclass of another rule does not inherit its title
            rule.title = _words(rule)
        _REGISTRY[names[0]] = rule
        _ALIASES.update(dict.fromkeys(names[1:], names[0]))
        return rule

    return add


def _again(old: type[Rule], new: type[Rule]) -> bool:
    """Whether a rule comes from a cell of a notebook that was run again, and replaces its predecessor."""
    return old.__module__ == new.__module__ == "__main__" and old.__qualname__ == new.__qualname__


def available() -> list[str]:
    """The names of all registered rules, aliases left out, in the order of `position`.

    Examples:
        >>> biotorch.rules.available()[:6]
        ['backpropagation', 'fa', 'dfa', 'usf', 'brsf', 'frsf']
    """
    return sorted(_REGISTRY, key=position)


def position(name: str) -> int:
    """Place of a rule in tables, figures and listings, as a key to sort by.

    The order is backpropagation, the other rules of the paper, learned feedback, experimental direct feedback,
    controls. Rules of users come after them in the order of their registration, and names that are no rule last.
    """
    canonical = own_name(name)
    known = [*_ORDER, *(each for each in _REGISTRY if each not in _ORDER)]
    return known.index(canonical) if canonical in known else len(known)


def _given() -> Iterator[tuple[str, str]]:
    """Every name that `register` was given, with the name of its rule."""
    yield from ((name, name) for name in _REGISTRY)
    yield from _ALIASES.items()


def _spellings() -> Iterator[tuple[str, str]]:
    """Every name that finds a rule, with the name of this rule: those of `_given`, then titles and names of classes."""
    yield from _given()
    yield from ((rule.title, name) for name, rule in _REGISTRY.items())
    yield from ((_words(rule), name) for name, rule in _REGISTRY.items())


def _words(rule: type[Rule]) -> str:
    """The words of the name of the class: `weight mirror` for `WeightMirror`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", rule.__name__).lower()


def _named(name: object, spellings: Iterator[tuple[str, str]]) -> str | None:
    """The name of the rule that is first in `spellings` and spelled like `name`, or None."""
    wanted = _letters(name)
    return next((own for spelling, own in spellings if _letters(spelling) == wanted), None)


def _letters(name: object) -> str:
    return re.sub(r"[\s_-]", "", str(name)).casefold()


def own_name(name: str) -> str:
    """The name of the rule that is meant by `name`; `name` itself if it is unknown.

    Capital letters, spaces, hyphens and underscores do not count, and the rule's title and its class's name find it as
    well: `FA`, `feedback_alignment` and `Feedback alignment` are all `fa`.
    """
    return name if name in _REGISTRY else _named(name, _spellings()) or name


def is_known(name: str) -> bool:
    """Whether `name` means a rule, see `own_name`.

    Examples:
        >>> biotorch.rules.is_known("bp"), biotorch.rules.is_known("sgd")
        (True, False)
    """
    return own_name(name) in _REGISTRY


def get(name: str) -> type[Rule]:
    """The rule class that is meant by `name`, see `own_name`.

    Raises:
        ValueError: there is none; the message has the nearest valid name.

    Examples:
        >>> biotorch.rules.get("bp").name, biotorch.rules.get("wm").transports
        ('backpropagation', 'nothing')
    """
    own = own_name(name)
    if own not in _REGISTRY:
        near = nearest(name, dict(_spellings()))
        raise ValueError(f"unknown rule {shortened(repr(name))}.{near} Valid: {', '.join(available())}.")
    return _REGISTRY[own]


def option_names(name: str) -> list[str]:
    """Names of the options that a rule accepts.

    Examples:
        >>> biotorch.rules.option_names("usf")
        ['init', 'feedback_init', 'gradient_clip', 'constrain_weights', 'bits', 'noise', 'dead']
    """
    refused = () if get(name).has_feedback else IMPERFECTIONS
    return [field.name for field in dataclasses.fields(get(name)) if field.name not in refused]


def completed_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a configuration for a rule, with all defaults filled in. Raises ValueError for an unknown rule."""
    fields = {each.name: each.default for each in dataclasses.fields(get(name))}
    defaults = {each: fields[each] for each in option_names(name) if fields[each] is not dataclasses.MISSING}
    return {**defaults, **dict.fromkeys(group_options(name)), **options}


def group_options(name: str) -> list[str]:
    """Options of a configuration that set up the parameter group of a rule's B; `make` does not accept them."""
    return [option for option in _GROUP if get(name).learns and option not in option_names(name)]


def require_own_option(name: str, option: str) -> None:
    """Raise ValueError, with the reason, if the rule lacks a B to distort or `option` is one of its `group_options`."""
    if option in IMPERFECTIONS and not get(name).has_feedback:
        raise get(name).no_feedback()
    if option in group_options(name):
        raise ValueError(
            f"{option!r} is no option of rule {get(name).name!r} itself, because its B is a parameter: give the "
            f'optimizer a group for B, {{"params": biotorch.feedback_parameters(model), "{_GROUP[option]}": ...}}, and '
            "another for the other parameters. In a configuration it is an option of model.mode"
        )


def from_layer_config(layer_config: Mapping[str, Any] | None, default: str) -> Rule:
    """Make the rule of a `layer_config`, the first system's `{"type": ..., "options": {...}}`.

    `default` is the rule if `layer_config` has no type.

    Raises:
        ValueError: a key, rule or option is unknown, or the type contradicts `default`.

    Examples:
        >>> rule = biotorch.rules.from_layer_config({"type": "usf", "options": {"init": "kaiming"}}, "usf")
        >>> rule.name, rule.init
        ('usf', 'kaiming')
    """
    config = {} if layer_config is None else layer_config
    if not isinstance(config, Mapping):
        raise ValueError(f'layer_config is a mapping {{"type": ..., "options": {{...}}}}, not {config!r}')
    for key in config:
        if key not in ("type", "options"):
            raise unknown("key of layer_config", key, ("type", "options"))
    kind = config.get("type") or default
    if get(kind) is not get(default):
        raise ValueError(f"layer_config asks for rule {kind!r}, but rule {default!r} is given, too: give only one")
    return make(kind, **(config.get("options") or {}))


def make(name: str, **options: Any) -> Rule:
    """Make the rule `name` with the given options.

    Raises:
        ValueError: the rule, an option or a value is not valid; the message has the nearest valid one.

    Examples:
        >>> biotorch.convert(nn.Linear(4, 3), biotorch.rules.make("fa", feedback_scale=0.5)).rule.feedback_scale
        0.5
    """
    valid = option_names(name)
    for option in options:
        require_own_option(name, option)
        if option not in valid:
            raise unknown(f"option of rule {get(name).name!r}", option, valid)
    try:
        return get(name)(**options)
    except TypeError as error:  # mostly from a rule's own check that compares values of different types
        given = ", ".join(f"{option}={value!r}" for option, value in options.items())
        raise ValueError(f"rule {get(name).name!r} does not take {given}: {error}") from error
