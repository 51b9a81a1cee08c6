"""Rules in words: their names spelled out, and what they transport."""

from __future__ import annotations

from biotorch.rules import registry

_SPELLED = {
    "backpropagation": "backpropagation",
    "fa": "feedback alignment",
    "dfa": "direct feedback alignment",
    "usf": "uniform sign-concordant feedback",
    "brsf": "batchwise random-magnitude sign-concordant feedback",
    "frsf": "fixed random-magnitude sign-concordant feedback",
    "kp": "Kolen-Pollack",
    "wm": "weight mirror",
    "ia": "information alignment",
    "sa": "symmetric alignment",
    "dkp": "direct Kolen-Pollack",
    "sdfa": "error-sign direct feedback alignment",
    "drtp": "direct random target projection",
    "shallow": "control, in which only the output layer learns",
    "sham": "control, which is backpropagation through the machinery of learned feedback",
}

#: Controls, which are no rules to be compared with backpropagation.
CONTROLS = ("shallow", "sham")

_TRANSPORTS = {
    "nothing": "transports nothing",
    "signs": "transports the signs of the weights",
    "weights": "transports the weights",
}


def spelled(rule: str) -> str:
    """Name of a rule without abbreviations; of a rule that is not ours, the first line of its docstring."""
    if rule in _SPELLED:
        return _SPELLED[rule]
    lines = (registry.get(rule).__doc__ or "").strip().splitlines() if registry.is_known(rule) else []
    return lines[0].rstrip(".") if lines else rule


def transported(rule: str) -> str | None:
    """What a rule carries backwards, `nothing`, `signs` or `weights`; None if the rule is not registered."""
    return registry.get(rule).transports if registry.is_known(rule) else None


def explained(rule: str) -> str:
    """Name of a rule without abbreviations, and what it transports."""
    what = transported(rule)
    if rule == "backpropagation":
        return "the reference; transports the weights"
    return spelled(rule) + (f"; {_TRANSPORTS[what]}" if what and rule != "shallow" else "")
