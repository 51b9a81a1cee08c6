"""Which weights of a network are trained."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase

from torch import nn

from biotorch.experiment.reading import ConfigError
from biotorch.layers import connections, feedback_parameters
from biotorch.names import unknown


def train_only(model: nn.Module, patterns: Iterable[str]) -> None:
    """From here on no parameter of `model` needs a gradient but those that one of `patterns` names.

    A pattern is the name of a parameter, or of a module with all parameters in it, with `*` and `?` as in
    file names. Statistics of batch norm are no parameters: they follow the batches as ever. Feedback weights that are
    parameters are trained where their W is.

    Raises:
        ConfigError: a pattern names nothing.
    """
    names: dict[nn.Parameter, set[str]] = {}
    feedback = set(feedback_parameters(model))
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter not in feedback:
            names.setdefault(parameter, set()).update(_above(name))
    everything = set().union(*names.values())
    trained: set[str] = set()
    for pattern in patterns:
        matching = {name for name in everything if fnmatchcase(name, pattern)}
        if not matching:
            raise ConfigError(f"model.train_only: {unknown('module or parameter', pattern, everything)}")
        trained |= matching
    for parameter, own in names.items():
        if not own & trained:
            parameter.requires_grad_(False)
    for connection in connections(model).values():
        connection.freeze_with_weight()


def _above(name: str) -> Iterator[str]:
    """The name of a parameter and those of all modules around it: `a`, `a.b`, `a.b.weight`."""
    parts = name.split(".")
    return (".".join(parts[:length]) for length in range(1, len(parts) + 1))
