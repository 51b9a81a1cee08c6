"""Learning rules: one file each, found by name through a registry."""

import importlib
import pkgutil

from biotorch.rules.base import DirectRule, FeedbackRule, RandomFeedback, Rule, Transports
from biotorch.rules.registry import available, from_layer_config, get, is_known, make, option_names, register
from biotorch.rules.update import Update

__all__ = [
    "DirectRule",
    "FeedbackRule",
    "RandomFeedback",
    "Rule",
    "Transports",
    "Update",
    "available",
    "from_layer_config",
    "get",
    "is_known",
    "make",
    "option_names",
    "register",
]

# Each file of this folder registers the rule it holds, so a new rule needs a new file and no other change.
for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
del importlib, pkgutil, _module
