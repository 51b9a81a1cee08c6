"""Feedback layers: torch's own layer types under a learning rule.

`biotorch.layers.<method>` holds the same types with the rule of that method preset.
"""

from biotorch.layers.attention import MultiheadAttention
from biotorch.layers.base import FeedbackLayer
from biotorch.layers.connection import Connection
from biotorch.layers.convolution import (
    Conv1d,
    Conv2d,
    Conv3d,
    ConvTranspose1d,
    ConvTranspose2d,
    ConvTranspose3d,
)
from biotorch.layers.linear import Bilinear, Linear, Product
from biotorch.layers.networks import clip_grad_norm_, connections, feedback_parameters, true_gradients, updated
from biotorch.layers.recurrent import GRUCell, LSTMCell, RNNCell
from biotorch.layers.registry import LAYER_TYPES, Reader, as_feedback, feedback_type, reading_type, register_layer
from biotorch.layers.tensors import is_feedback

from biotorch.layers import (  # isort: skip - made of the layers above
    backpropagation,
    brsf,
    dfa,
    dkp,
    drtp,
    fa,
    frsf,
    ia,
    kp,
    sa,
    sdfa,
    sham,
    usf,
    wm,
)

__all__ = [
    "LAYER_TYPES",
    "Bilinear",
    "Connection",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "FeedbackLayer",
    "GRUCell",
    "LSTMCell",
    "Linear",
    "MultiheadAttention",
    "Product",
    "RNNCell",
    "Reader",
    "as_feedback",
    "backpropagation",
    "brsf",
    "clip_grad_norm_",
    "connections",
    "dfa",
    "dkp",
    "drtp",
    "fa",
    "feedback_parameters",
    "feedback_type",
    "frsf",
    "ia",
    "is_feedback",
    "kp",
    "reading_type",
    "register_layer",
    "sa",
    "sdfa",
    "sham",
    "true_gradients",
    "updated",
    "usf",
    "wm",
]
