"""The registered rules, and what the conformance suite of the package trains them on."""

import biotorch
from biotorch.testing import (
    LAYER_NAMES,
    Net,
    assert_all_learn,
    assert_close,
    assert_identical,
    collect,
    gradients,
    images,
    loss_of,
    net,
)

__all__ = [
    "BY_ERROR",
    "DIRECT",
    "LAYERWISE",
    "LAYER_NAMES",
    "PLAIN_DIRECT",
    "RULES",
    "TRAINING",
    "Net",
    "assert_all_learn",
    "assert_close",
    "assert_identical",
    "collect",
    "gradients",
    "images",
    "loss_of",
    "net",
]

RULES = biotorch.rules.available()
DIRECT = [name for name in RULES if biotorch.rules.get(name).direct]
#: Those that project the error itself.
PLAIN_DIRECT = [name for name in DIRECT if not biotorch.rules.get(name).has_signal()]
#: Those that train more than the output layer, and of them those whose signal is the error itself.
TRAINING = [name for name in RULES if not biotorch.rules.get(name).trains_output_only]
BY_ERROR = [name for name in TRAINING if name not in DIRECT or name in PLAIN_DIRECT]
LAYERWISE = [name for name in RULES if not biotorch.rules.get(name).direct]
