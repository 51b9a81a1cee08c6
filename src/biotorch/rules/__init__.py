"""Learning rules: one file each, found by name through a registry."""

from biotorch.rules import (
    backpropagation,
    brsf,
    dfa,
    dkp,
    drtp,
    fa,
    frsf,
    ia,
    kp,
    sa,
    sdfa,
    shallow,
    sham,
    usf,
    wm,
)
from biotorch.rules.base import DirectRule, FeedbackRule, Rule, Transports
from biotorch.rules.registry import available, from_layer_config, get, is_known, make, option_names, register
from biotorch.rules.update import Update

__all__ = [
    "DirectRule",
    "FeedbackRule",
    "Rule",
    "Transports",
    "Update",
    "available",
    "backpropagation",
    "brsf",
    "dfa",
    "dkp",
    "drtp",
    "fa",
    "from_layer_config",
    "frsf",
    "get",
    "ia",
    "is_known",
    "kp",
    "make",
    "option_names",
    "register",
    "sa",
    "sdfa",
    "shallow",
    "sham",
    "usf",
    "wm",
]
