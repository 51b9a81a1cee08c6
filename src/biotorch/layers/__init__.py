"""Feedback layers: torch's own layer types under a learning rule.

`biotorch.layers.<method>` holds the same types with the rule of that method preset.
"""

from biotorch.layers.base import LAYER_TYPES, FeedbackLayer, is_feedback, register_layer
from biotorch.layers.convolution import (
    Conv1d,
    Conv2d,
    Conv3d,
    ConvTranspose1d,
    ConvTranspose2d,
    ConvTranspose3d,
)
from biotorch.layers.linear import Linear

__all__ = [
    "LAYER_TYPES",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "FeedbackLayer",
    "Linear",
    "is_feedback",
    "register_layer",
]
