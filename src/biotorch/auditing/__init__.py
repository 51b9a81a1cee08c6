"""The audit: a test by experiment, layer by layer, of what a network's backward pass transports."""

from biotorch.auditing.experiment import audit
from biotorch.auditing.verdicts import Audit, LayerAudit
from biotorch.errors import AuditError

__all__ = ["Audit", "AuditError", "LayerAudit", "audit"]
