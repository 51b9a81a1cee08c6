"""From a configuration file to results on disk."""

from biotorch._face import face

__getattr__, __dir__, __all__ = face(__name__, __file__)
