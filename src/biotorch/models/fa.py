"""Every architecture of the package under feedback alignment."""

from biotorch.models.methods import constructors

__getattr__, __dir__ = constructors("fa")
