"""Conversion of a network to a learning rule, the summary of a network, and the way back."""

from biotorch.conversion.convert import convert
from biotorch.conversion.install import revert
from biotorch.conversion.summary import Summary, summary
from biotorch.errors import ConversionError, ConversionWarning

__all__ = ["ConversionError", "ConversionWarning", "Summary", "convert", "revert", "summary"]
