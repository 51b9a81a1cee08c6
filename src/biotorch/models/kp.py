"""Every architecture of the package under the rule `kp`."""

from biotorch.models.methods import constructors

__getattr__, __dir__ = constructors("kp")
