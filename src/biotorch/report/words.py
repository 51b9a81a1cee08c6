"""Rules in words: their names spelled out, and what they transport."""

from __future__ import annotations

from biotorch.rules import registry

_TRANSPORTS = {
    "nothing": "transports nothing",
    "signs": "transports the signs of the weights",
    "weights": "transports the weights",
}


def spelled(rule: str) -> str:
    """Title of a rule, its name without abbreviations; the name itself if the rule is not registered."""
    return registry.get(rule).title if registry.is_known(rule) else rule


def transported(rule: str) -> str | None:
    """Part of W that a rule carries backwards, `nothing`, `signs` or `weights`; None if the rule is not registered."""
    return registry.get(rule).transports if registry.is_known(rule) else None


def is_rival(rule: str) -> bool:
    """Whether a rule competes with backpropagation: it transports less, and it trains more than the output layer."""
    return transported(rule) != "weights" and not (registry.is_known(rule) and registry.get(rule).trains_output_only)


def explained(rule: str) -> str:
    """Title of a rule, and what it transports."""
    what = transported(rule)
    if rule == "backpropagation":
        return "the reference; transports the weights"
    return spelled(rule) + (f"; {_TRANSPORTS[what]}" if what else "")
