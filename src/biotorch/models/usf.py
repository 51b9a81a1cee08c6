"""Every architecture of the package under uniform sign-concordant feedback."""

from biotorch.models.methods import constructors

__getattr__, __dir__ = constructors("usf")
