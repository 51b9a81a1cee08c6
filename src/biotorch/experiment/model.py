"""The `model` section of a configuration: network, learning rule, initial weights and loss."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_validator, model_validator

from biotorch import models, rules
from biotorch._names import unknown
from biotorch._sections import Place, Section
from biotorch.data import Task
from biotorch.errors import SectionError
from biotorch.models.registry import completed_arguments
from biotorch.rules.registry import completed_options, group_options, own_name, require_own_option
from biotorch.training.losses import Loss, LossConfig


class RuleConfig(Section):
    """Name of a learning rule, and its options."""

    type: str
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of the rule. Rules whose B is a parameter (kp, dkp) also take feedback_rate and feedback_decay, the
    learning rate and weight decay of B; by default B has the rate and decay of W. The ratio of feedback_rate to
    training.optimizer.lr stays constant."""

    @field_validator("type")
    @classmethod
    def _known(cls, name: str) -> str:
        try:
            return rules.get(name).name
        except ValueError as error:
            raise ValueError(f"{error} To use a rule of your own, list its module under `imports:`.") from error

    @model_validator(mode="after")
    def _options_fit(self) -> RuleConfig:
        alone = {f"options.{name}": self._problem({name: value}) for name, value in self.options.items()}
        problems = {key: text for key, text in alone.items() if text}
        if not problems and (text := self._problem(self.options)):
            problems["options"] = text
        if problems:
            raise SectionError(problems)
        return self

    @classmethod
    def completed(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        found = super().completed(values)
        name, options = found.get("type"), found["options"]
        if isinstance(name, str) and rules.is_known(name) and isinstance(options, Mapping):
            found |= {"type": rules.get(name).name, "options": completed_options(name, options)}
        return found

    def build(self) -> rules.Rule:
        """Create the rule."""
        own = {name: value for name, value in self.options.items() if name not in self._of_group}
        return rules.make(self.type, **own)

    @property
    def feedback_rate(self) -> float | None:
        """Learning rate of B, or None if the options set none."""
        return self._of_group.get("feedback_rate")

    @property
    def feedback_decay(self) -> float | None:
        """Weight decay of B, or None if the options set none."""
        return self._of_group.get("feedback_decay")

    @property
    def _of_group(self) -> dict[str, Any]:
        return {name: self.options[name] for name in group_options(self.type) if name in self.options}

    def _problem(self, options: dict[str, Any]) -> str | None:
        known, own = rules.option_names(self.type), group_options(self.type)
        try:
            for name, value in options.items():
                if name not in (*known, *own):
                    require_own_option(self.type, name)
                    raise unknown(f"option of rule {rules.get(self.type).name!r}", name, [*known, *own])
                number = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf
                if name in own and value is not None and not number:
                    raise ValueError(f"{name} must be a number of at least 0, not {value!r}")
            rules.make(self.type, **{name: value for name, value in options.items() if name in known})
        except (TypeError, ValueError) as error:
            return str(error)
        return None


def with_own_names(value: Any, path: str = "") -> Any:
    """Copy of a part of a configuration in which rules have their own names, however they are spelled there.

    So a sweep's folders and conditions, and overrides of it, agree in the name. Unknown names stay as they are.

    Args:
        value: the configuration, a section, or a value.
        path: its dotted key path; that of a sweep may end with the path of a key that it sets.
    """
    names_rule = f".{path}".endswith(".model.mode.type")
    if isinstance(value, list):
        return [with_own_names(each, path) for each in value]
    if isinstance(value, dict):
        names = {key: own_name(key) if names_rule and isinstance(key, str) else key for key in value}
        if len(set(names.values())) < len(names):  # two spellings of one rule, which stay two cases
            names = {key: key for key in value}
        return {names[key]: with_own_names(each, f"{path}.{key}") for key, each in value.items()}
    return own_name(value) if names_rule and isinstance(value, str) else value


#: A rule, or in a file only its name.
_NamedRule = Annotated[
    RuleConfig,
    BeforeValidator(
        lambda rule: {"type": rule} if isinstance(rule, str) else rule, json_schema_input_type=RuleConfig | str
    ),
]


class ModeConfig(RuleConfig):
    """`model.mode`: the learning rule, and possibly other rules for some layers."""

    layers: dict[str, _NamedRule] | None = None
    """Rules by patterns of layer names (* and ? as in file names); a rule is a name, or type and options. A layer gets
    the rule of the first pattern that matches its name, else the rule of the mode."""

    @classmethod
    def completed(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        found = super().completed(values)
        return {**found, "layers": found["layers"] or None}

    @field_validator("layers")
    @classmethod
    def _leave_some(cls, layers: dict[str, RuleConfig] | None) -> dict[str, RuleConfig] | None:
        if layers and "*" in layers:
            raise ValueError(
                "'*' would leave no layer for the rule of the mode: give this rule as the type of the mode instead"
            )
        return layers


class ModelConfig(Section):
    """`model`: an architecture under a rule, from scratch, from published weights or from a checkpoint."""

    architecture: str | None = None
    """Name of the network; may be left out with a checkpoint of this package, which contains it."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the architecture, such as {depth: 3, width: 256} of mlp."""
    mode: ModeConfig | None = None
    pretrained: bool = False
    checkpoint: Place | None = None
    """Initial weights: the folder of a run, one of its .pth files, or a file with a plain state_dict."""
    train_only: list[str] | None = Field(default=None, min_length=1)
    """Names of modules or parameters to train, with * for any characters; all others keep their initial values."""
    loss_function: LossConfig | None = None
    """Loss; default: cross_entropy for classes, mse for the numbers of a regression."""

    @classmethod
    def completed(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        found = super().completed(values)
        if isinstance(found["architecture"], str) and isinstance(found["arguments"], Mapping):
            found["arguments"] = completed_arguments(found["architecture"], found["arguments"])
        return found

    @field_validator("architecture")
    @classmethod
    def _known(cls, name: str | None) -> str | None:
        if name is not None:
            models.check_name(name)
        return name

    @field_validator("arguments")
    @classmethod
    def _not_given_already(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        given = [name for name in arguments if name in _GIVEN]
        if given:
            raise SectionError(
                {name: "is set by the data and the other keys of `model`: leave it out" for name in given}
            )
        return arguments

    @model_validator(mode="after")
    def _weights_have_one_source(self) -> ModelConfig:
        if self.pretrained and self.checkpoint is not None:
            raise SectionError({"pretrained": "the checkpoint contains the weights: give only one of the two"})
        if self.architecture is None and self.checkpoint is None:
            raise SectionError({"architecture": "missing"})
        if self.architecture is None and self.arguments:
            raise SectionError(
                {"arguments": "the checkpoint contains its own: give the architecture, too, or leave them out"}
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _backpropagation_unless_told(cls, values: Any) -> Any:
        """Set the default rule, unless there is a checkpoint, which contains its rule."""
        if isinstance(values, dict) and values.get("mode") is None and values.get("checkpoint") is None:
            return {**values, "mode": {"type": "backpropagation"}}
        return values

    def loss(self, task: Task) -> Loss:
        """Loss of the configuration, or the task's default.

        Raises:
            SectionError: at `loss_function`: it does not take the targets of the task.
        """
        try:
            return (self.loss_function or LossConfig.default(task)).build(task)
        except SectionError as error:
            raise SectionError({f"loss_function.{key}": text for key, text in error.problems.items()}) from error


#: Parameters of `models.build` that this package sets itself.
_GIVEN = inspect.signature(models.build).parameters.keys() - {"arguments"}
