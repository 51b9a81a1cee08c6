"""The import path of the paper: `from biotorch.module.biomodule import BioModule`."""

from biotorch.module.biomodule import BioModule

__all__ = ["BioModule"]
