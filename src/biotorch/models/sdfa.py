"""Every architecture of the package under the rule `sdfa`."""

from biotorch.models.methods import constructors

__getattr__, __dir__ = constructors("sdfa")
