"""Every architecture of the package under backpropagation."""

from biotorch.models.methods import constructors

__getattr__, __dir__ = constructors("backpropagation")
