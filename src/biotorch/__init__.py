"""biotorch: train any PyTorch network without weight transport, and know honestly how well it does.

Everything is imported at its first use: `import biotorch` takes no time, not even that of torch.
"""

from biotorch._face import face

__version__ = "0.1.0.dev0"

__getattr__, __dir__, __all__ = face(__name__, __file__)
