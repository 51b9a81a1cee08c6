"""From a network to a network under a rule, its summary, and the way back."""

from biotorch.conversion.convert import convert
from biotorch.conversion.revert import revert
from biotorch.conversion.summary import Summary, summary
from biotorch.errors import ConversionError, ConversionWarning

__all__ = ["ConversionError", "ConversionWarning", "Summary", "convert", "revert", "summary"]
