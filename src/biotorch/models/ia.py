"""Every architecture of the package under the rule `ia`."""

from biotorch.models.methods import constructors

__getattr__, __dir__ = constructors("ia")
