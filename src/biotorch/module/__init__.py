"""From a network to a network under a rule: conversion, its report, its proof."""

from biotorch.module.auditing import Audit, AuditError, audit
from biotorch.module.biomodule import BioModule
from biotorch.module.conversion import ConversionError, ConversionWarning, convert
from biotorch.module.report import Summary, summary
from biotorch.module.true_gradient import true_gradients

__all__ = [
    "Audit",
    "AuditError",
    "BioModule",
    "ConversionError",
    "ConversionWarning",
    "Summary",
    "audit",
    "convert",
    "summary",
    "true_gradients",
]
