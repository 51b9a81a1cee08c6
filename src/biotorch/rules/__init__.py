"""Learning rules: one file each, found by name through a registry."""

from biotorch.rules import backpropagation, brsf, dfa, fa, frsf, usf
from biotorch.rules.base import (
    DirectRule,
    FeedbackRule,
    Rule,
    available,
    from_layer_config,
    get,
    make,
    option_names,
    register,
)

__all__ = [
    "DirectRule",
    "FeedbackRule",
    "Rule",
    "available",
    "backpropagation",
    "brsf",
    "dfa",
    "fa",
    "from_layer_config",
    "frsf",
    "get",
    "make",
    "option_names",
    "register",
    "usf",
]
