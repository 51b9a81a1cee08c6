"""The proof that a network transports no weights, layer by layer."""

from biotorch.auditing.experiment import audit
from biotorch.auditing.verdicts import Audit, LayerAudit
from biotorch.errors import AuditError

__all__ = ["Audit", "AuditError", "LayerAudit", "audit"]
