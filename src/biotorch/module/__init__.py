"""From a network to a network under a rule: conversion, its report, its proof."""

from biotorch.module.auditing import audit
from biotorch.module.biomodule import BioModule
from biotorch.module.conversion import convert
from biotorch.module.plan import ConversionError, ConversionWarning
from biotorch.module.report import Summary, summary
from biotorch.module.reversion import revert
from biotorch.module.true_gradient import true_gradients
from biotorch.module.verdicts import Audit, AuditError, LayerAudit

__all__ = [
    "Audit",
    "AuditError",
    "BioModule",
    "ConversionError",
    "ConversionWarning",
    "LayerAudit",
    "Summary",
    "audit",
    "convert",
    "revert",
    "summary",
    "true_gradients",
]
