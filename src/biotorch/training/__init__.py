"""Training: the loop, and devices, optimizers, schedulers and losses, which a configuration names."""

from biotorch._face import face

__getattr__, __dir__, __all__ = face(__name__, __file__)
