"""The configuration of an experiment, in the format of the paper (appendix 6.2) with further keys."""

from __future__ import annotations

import inspect
import math
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field, field_validator, model_validator

from biotorch import models, rules
from biotorch._names import unknown
from biotorch._sections import Place, Section, place
from biotorch.data import DataConfig
from biotorch.errors import SectionError
from biotorch.experiment.cluster import ClusterConfig
from biotorch.experiment.importing import check_name
from biotorch.robustness.config import AttacksConfig
from biotorch.rules.registry import group_options
from biotorch.training.losses import LossConfig
from biotorch.training.settings import InfrastructureConfig, TrainingConfig


class ExperimentConfig(Section):
    """`experiment`: name, output folder, seed and determinism."""

    name: str = Field(min_length=1)
    output_dir: Place = Path("runs")
    seed: int = Field(default=0, ge=0, lt=2**63)
    deterministic: bool = True
    """Use only deterministic PyTorch operations; an operation without a deterministic version raises an error."""

    @field_validator("name")
    @classmethod
    def _folder(cls, name: str) -> str:
        path = Path(name)
        if not name.strip() or not name.isprintable() or path.is_absolute() or not path.parts or ".." in path.parts:
            raise ValueError(f"must be the name of a folder below output_dir, not {name!r}")
        place(path)
        return name


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
            rules.get(name)
        except ValueError as error:
            raise ValueError(f"{error} To use a rule of your own, list its module under `imports:`.") from error
        return name

    @model_validator(mode="after")
    def _options_fit(self) -> RuleConfig:
        alone = {f"options.{name}": self._problem({name: value}) for name, value in self.options.items()}
        problems = {key: text for key, text in alone.items() if text}
        if not problems and (text := self._problem(self.options)):
            problems["options"] = text
        if problems:
            raise SectionError(problems)
        return self

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
        for name, value in options.items():
            if name not in (*known, *own):
                return str(unknown(f"option of rule {rules.get(self.type).name!r}", name, [*known, *own]))
            number = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf
            if name in own and value is not None and not number:
                return f"{name} must be a number of at least 0, not {value!r}"
        try:
            rules.make(self.type, **{name: value for name, value in options.items() if name in known})
        except (TypeError, ValueError) as error:
            return str(error)
        return None


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
    loss_function: LossConfig = LossConfig()

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


#: Parameters of `models.build` that this package sets itself.
_GIVEN = inspect.signature(models.build).parameters.keys() - {"arguments"}


class LoggingConfig(Section):
    """`logging`: logs to write besides metrics.jsonl, which is always written."""

    tensorboard: bool = True
    wandb: str | None = None
    """Name of a project of Weights & Biases to log to (`pip install 'biotorch[wandb]'`)."""


class Config(Section):
    """One experiment, or several with `sweep`."""

    model_config = ConfigDict(title="biotorch experiment")

    imports: list[str] = Field(default_factory=list)
    """Modules, or .py files by their path from the working folder, that register your rules, layers or networks."""
    experiment: ExperimentConfig
    data: DataConfig
    model: ModelConfig
    training: TrainingConfig | None = None
    """Left out, the checkpoint of `model` is only evaluated."""
    infrastructure: InfrastructureConfig = InfrastructureConfig()
    cluster: ClusterConfig = ClusterConfig()
    """Resources for --executor slurm and --executor ray."""
    attacks: AttacksConfig | None = None
    """Study the robustness of the best model after training; `biotorch attack` also works without this section."""
    evaluation: bool = True
    """Evaluate the best model on the test set."""
    logging: LoggingConfig = LoggingConfig()
    sweep: dict[str, Any] = Field(default_factory=dict)
    """Axes of a grid: `key.path: [values]`, or named cases, `axis: {case: {key.path: value, ...}}`. If the name of the
    axis is a key path, this key is set to the name of the case."""

    @field_validator("imports")
    @classmethod
    def _modules(cls, names: list[str]) -> list[str]:
        for name in names:
            check_name(name)
        return names

    @model_validator(mode="after")
    def _images_alone_have_these(self) -> Config:
        given = {
            "attacks": self.attacks,
            "training.adversarial": None if self.training is None else self.training.adversarial,
            "training.noise_pretraining": None if self.training is None else self.training.noise_pretraining,
        }
        wrong = [key for key, value in given.items() if self.data.is_text and value is not None]
        if wrong:
            text = f"a setting of images, but {self.data.dataset} is a text: leave it out"
            raise SectionError(dict.fromkeys(wrong, text))
        return self

    @model_validator(mode="after")
    def _optimizer_decays_feedback(self) -> Config:
        mode, training = self.model.mode, self.training
        if mode is None or training is None or training.optimizer.decays:
            return self
        modes = {"model.mode": mode, **{f"model.mode.layers.{key}": rule for key, rule in (mode.layers or {}).items()}}
        wrong = [f"{key}.options.feedback_decay" for key, rule in modes.items() if rule.feedback_decay is not None]
        if wrong:
            text = (
                f"{training.optimizer.type} takes no weight_decay: leave feedback_decay out, or use another optimizer"
            )
            raise SectionError(dict.fromkeys(wrong, text))
        return self

    @model_validator(mode="after")
    def _something_to_do(self) -> Config:
        if self.training is None:
            if self.model.checkpoint is None:
                raise SectionError(
                    {"training": "missing; to evaluate a trained network without training, set model.checkpoint"}
                )
            if not self.evaluation:
                raise SectionError({"evaluation": "false, although there is no training: there would be nothing to do"})
        return self
