"""Every architecture of the package under direct feedback alignment."""

from biotorch.models.registry import constructors

__getattr__, __dir__ = constructors("dfa")
