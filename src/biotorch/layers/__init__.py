"""Feedback layers: torch's own layer types under a learning rule.

`biotorch.layers.<rule>` has the same types with that rule preset.
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
from biotorch.layers.registry import (
    LAYER_TYPES,
    Reader,
    as_feedback,
    feedback_type,
    reading_type,
    register_layer,
    set_type,
    under_rule,
    weights_at_rest,
)
from biotorch.layers.sequences import GRU, LSTM, RNN
from biotorch.layers.tensors import is_feedback
from biotorch.rules.paths import per_rule

__all__ = [
    "GRU",
    "LAYER_TYPES",
    "LSTM",
    "RNN",
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
    "clip_grad_norm_",
    "connections",
    "feedback_parameters",
    "feedback_type",
    "is_feedback",
    "reading_type",
    "register_layer",
    "set_type",
    "true_gradients",
    "updated",
    "weights_at_rest",
]

__getattr__, __dir__ = per_rule("biotorch.layers", under_rule)
