"""The registered rules, by what the tests ask of them."""

from typing import Any

import pytest

import biotorch

RULES = biotorch.rules.available()
DIRECT = [name for name in RULES if biotorch.rules.get(name).direct]
#: Those that project the error itself.
PLAIN_DIRECT = [name for name in DIRECT if not biotorch.rules.get(name).has_signal()]
#: Those that train more than the output layer, and of them those whose signal is the error itself.
TRAINING = [name for name in RULES if not biotorch.rules.get(name).trains_output_only]
BY_ERROR = [name for name in TRAINING if name not in DIRECT or name in PLAIN_DIRECT]
LAYERWISE = [name for name in RULES if not biotorch.rules.get(name).direct]

#: Rules whose way through kernel and layers is that of another one, which stands beside them.
REPEATED = {
    "usf": "brsf", "frsf": "brsf", "wm": "brsf", "ia": "brsf", "sa": "brsf", "sham": "brsf",
    "dkp": "dfa", "sdfa": "drtp", "shallow": "fa",
}  # fmt: skip


def one_per_path(rules: list[str]) -> list[Any]:
    """For tests that take long: rules whose path another rule goes too are left to the slow tests."""
    return [pytest.param(name, marks=pytest.mark.slow) if name in REPEATED else name for name in rules]


#: For tests of every rule that give the optimizer no decay, which `kp` warns of; layers/test_learning.py expects it.
without_decay = pytest.mark.filterwarnings("ignore:kp. the optimizer has no weight decay:UserWarning")
