"""Every architecture of the package under batchwise random-magnitude sign-concordant feedback."""

from biotorch.models.methods import constructors

__getattr__, __dir__ = constructors("brsf")
