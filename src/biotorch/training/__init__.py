"""Training: one loop; devices, optimizers, schedulers and losses by name."""

from biotorch._face import face

__getattr__, __dir__, __all__ = face(__name__, __file__)
