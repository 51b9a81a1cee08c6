"""The registered rules, by what the tests ask of them."""

import biotorch

RULES = biotorch.rules.available()
DIRECT = [name for name in RULES if biotorch.rules.get(name).direct]
#: Those that project the error itself.
PLAIN_DIRECT = [name for name in DIRECT if not biotorch.rules.get(name).has_signal()]
#: Those that train more than the output layer, and of them those whose signal is the error itself.
TRAINING = [name for name in RULES if not biotorch.rules.get(name).trains_output_only]
BY_ERROR = [name for name in TRAINING if name not in DIRECT or name in PLAIN_DIRECT]
LAYERWISE = [name for name in RULES if not biotorch.rules.get(name).direct]
