"""Which rule each layer gets: one for all, by name pattern, or by a function of the user's."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

from torch import nn

from biotorch.names import unknown
from biotorch.rules import Rule, make, option_names
from biotorch.rules.registry import require_no_group_option

#: A rule by name or as an object; None leaves the layer as it is.
RuleLike: TypeAlias = str | Rule | None
#: One for every layer, patterns of layer names (first match wins), or a function (name, layer) -> rule.
Choice: TypeAlias = str | Rule | Mapping[str, RuleLike] | Callable[[str, nn.Module], RuleLike]


def first_match(name: str, patterns: Iterable[str]) -> str | None:
    """The first pattern that matches a layer's name, which decides on its rule; None if none does."""
    return next((pattern for pattern in patterns if fnmatch.fnmatchcase(name, pattern)), None)


class Chooser:
    """Answers `rule_for(name, layer)`; collects what is wrong with the question instead of raising."""

    def __init__(self, choice: Choice, options: dict[str, Any]) -> None:
        if isinstance(choice, type) or not (isinstance(choice, str | Rule | Mapping) or callable(choice)):
            raise TypeError(
                "a rule is a name, a Rule, a mapping of layer patterns to rules, or a function "
                f"(name, layer) -> rule, not {choice!r}"
            )
        self.choice = choice
        self.options = options
        self.problems: list[str] = []
        self._made: dict[str, Rule] = {}
        self._named: dict[str, None] = {}
        self._used_patterns: set[str] = set()
        #: Layers that no pattern of a mapping matches: forgotten, where None is a decision.
        self.unmatched: set[str] = set()

    def rule_for(self, name: str, layer: nn.Module) -> Rule | None:
        """The layer's rule, or None if it is to be left."""
        try:
            return self._resolve(self._pick(name, layer))
        except ValueError as error:
            if str(error) not in self.problems:
                self.problems.append(str(error))
            return None

    def finish(self, layer_names: list[str]) -> None:
        """Add the problems only seen at the end: patterns and options that met nothing."""
        if isinstance(self.choice, Mapping):
            for pattern in self.choice:
                if pattern not in self._used_patterns and pattern != "*":  # the rest may be empty
                    met = any(fnmatch.fnmatchcase(name, pattern) for name in layer_names)
                    why = (
                        "an earlier pattern takes all its layers"
                        if met
                        else str(unknown("layer pattern", pattern, layer_names))
                    )
                    self.problems.append(why if not met else f"pattern {pattern!r}: {why}")
        if self._named:
            accepted = sorted({option for name in self._named for option in option_names(name)})
            for option in self.options:
                if option not in accepted:
                    self.problems.append(self._refusal(option, accepted))

    def _refusal(self, option: str, accepted: list[str]) -> str:
        try:
            for name in self._named:
                require_no_group_option(name, option)
        except ValueError as error:
            return str(error)
        return str(unknown(f"option of {', '.join(self._named)}", option, accepted))

    def _pick(self, name: str, layer: nn.Module) -> RuleLike:
        if isinstance(self.choice, str | Rule):
            return self.choice
        if isinstance(self.choice, Mapping):
            pattern = first_match(name, self.choice)
            if pattern is None:
                self.unmatched.add(name)
                return None
            self._used_patterns.add(pattern)
            return self.choice[pattern]
        return self.choice(name, layer)

    def _resolve(self, rule: RuleLike) -> Rule | None:
        if isinstance(rule, Rule):
            if self.options:
                raise ValueError(
                    f"options {', '.join(self.options)} beside a finished {rule.name!r} rule: give them to the rule"
                )
            return rule
        if rule is None:
            return None
        if not isinstance(rule, str):
            raise ValueError(f"a rule is a name, a Rule or None, not {rule!r}")
        if rule not in self._made:
            known_options = option_names(rule)  # raises for an unknown rule
            self._named.setdefault(rule)
            # One call may mix rules: each takes the options it knows; `finish` reports the others.
            known = {key: value for key, value in self.options.items() if key in known_options}
            self._made[rule] = make(rule, **known)
        return self._made[rule]
