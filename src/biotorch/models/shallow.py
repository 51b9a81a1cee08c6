"""Every architecture of the package under the rule `shallow`."""

from biotorch.models.methods import constructors

__getattr__, __dir__ = constructors("shallow")
