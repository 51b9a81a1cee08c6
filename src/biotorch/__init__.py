"""biotorch: train any PyTorch network without weight transport, and know honestly how well it does.

Every name is imported when it is first used; `import biotorch` alone does not even import torch.
"""

from biotorch._face import face
from biotorch._first_system import warn_if_installed

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = face(__name__, __file__)
warn_if_installed()
