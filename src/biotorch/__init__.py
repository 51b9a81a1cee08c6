"""biotorch: train any PyTorch network without weight transport, and know honestly how well it does."""

from biotorch import layers, metrics, models, module, rules
from biotorch.module import (
    Audit,
    AuditError,
    BioModule,
    ConversionError,
    ConversionWarning,
    Summary,
    audit,
    convert,
    summary,
    true_gradients,
)

__version__ = "0.1.0.dev0"

__all__ = [
    "Audit",
    "AuditError",
    "BioModule",
    "ConversionError",
    "ConversionWarning",
    "Summary",
    "audit",
    "convert",
    "layers",
    "metrics",
    "models",
    "module",
    "rules",
    "summary",
    "true_gradients",
]
