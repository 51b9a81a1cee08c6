"""The configuration of an experiment: the paper's format (appendix 6.2), and more."""

from __future__ import annotations

import inspect
import math
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field, field_validator, model_validator

from biotorch import models, rules
from biotorch._names import unknown
from biotorch._sections import Section
from biotorch.data import DataConfig
from biotorch.errors import SectionError
from biotorch.experiment.cluster import ClusterConfig
from biotorch.experiment.importing import check_name
from biotorch.robustness.config import AttacksConfig
from biotorch.rules.registry import group_options
from biotorch.training.losses import LossConfig
from biotorch.training.settings import InfrastructureConfig, TrainingConfig


class ExperimentConfig(Section):
    """`experiment`: its name, where it writes, and what it can repeat."""

    name: str = Field(min_length=1)
    output_dir: Path = Path("runs")
    seed: int = Field(default=0, ge=0, lt=2**63)
    deterministic: bool = True
    """Only deterministic PyTorch operations; an operation that has no such version raises."""

    @field_validator("name")
    @classmethod
    def _folder(cls, name: str) -> str:
        path = Path(name)
        if not name.strip() or not name.isprintable() or path.is_absolute() or not path.parts or ".." in path.parts:
            raise ValueError(f"the name of a folder below output_dir is needed, not {name!r}")
        return name

    @field_validator("output_dir")
    @classmethod
    def _home(cls, path: Path) -> Path:
        if not str(path).isprintable():
            raise ValueError("a folder is needed")
        return path.expanduser()


class RuleConfig(Section):
    """A learning rule and its options."""

    type: str
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of the rule. Where its B is a parameter (kp, dkp), also feedback_rate and feedback_decay: learning
    rate and weight decay of B, by default those of W. The rate keeps its ratio to training.optimizer.lr."""

    @field_validator("type")
    @classmethod
    def _known(cls, name: str) -> str:
        try:
            rules.get(name)
        except ValueError as error:
            raise ValueError(f"{error} A rule of your own is known once its module stands under `imports:`.") from error
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
        """The rule."""
        own = {name: value for name, value in self.options.items() if name not in self._of_group}
        return rules.make(self.type, **own)

    @property
    def feedback_rate(self) -> float | None:
        """Learning rate of B, where it is a parameter and has one of its own."""
        return self._of_group.get("feedback_rate")

    @property
    def feedback_decay(self) -> float | None:
        """Weight decay of B, where it is a parameter and has one of its own."""
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
                return f"{name} is a number of at least 0, not {value!r}"
        try:
            rules.make(self.type, **{name: value for name, value in options.items() if name in known})
        except (TypeError, ValueError) as error:
            return str(error)
        return None


#: In a file, a name is enough.
_NamedRule = Annotated[
    RuleConfig,
    BeforeValidator(
        lambda rule: {"type": rule} if isinstance(rule, str) else rule, json_schema_input_type=RuleConfig | str
    ),
]


class ModeConfig(RuleConfig):
    """`model.mode`: the learning rule, and other rules for some of the layers."""

    layers: dict[str, _NamedRule] | None = None
    """Patterns of layer names, with * and ? as in file names, and their rule: a name, or type and options. The first
    pattern that matches a layer counts; the others have the rule of the mode."""

    @field_validator("layers")
    @classmethod
    def _leave_some(cls, layers: dict[str, RuleConfig] | None) -> dict[str, RuleConfig] | None:
        if layers and "*" in layers:
            raise ValueError("'*' would leave no layer for the rule of the mode: give that as its type")
        return layers


class ModelConfig(Section):
    """`model`: an architecture under a rule, from scratch, from published weights or from a checkpoint."""

    architecture: str | None = None
    """May be left out with a checkpoint of this package, which knows its own."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the architecture, such as {depth: 3, width: 256} of mlp."""
    mode: ModeConfig | None = None
    pretrained: bool = False
    checkpoint: Path | None = None
    """A run's folder, one of its .pth files, or a file with a plain state_dict: where the weights start."""
    train_only: list[str] | None = Field(default=None, min_length=1)
    """Names of modules or parameters, with * for any letters: all other parameters stay as they start."""
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
            raise SectionError({name: "follows from the data and the keys of `model`: leave it out" for name in given})
        return arguments

    @model_validator(mode="after")
    def _weights_have_one_source(self) -> ModelConfig:
        if self.pretrained and self.checkpoint is not None:
            raise SectionError({"pretrained": "the checkpoint has the weights: give one of the two"})
        if self.architecture is None and self.checkpoint is None:
            raise SectionError({"architecture": "missing"})
        if self.architecture is None and self.arguments:
            raise SectionError({"arguments": "the checkpoint has its own: name the architecture that takes these"})
        return self

    @model_validator(mode="before")
    @classmethod
    def _backpropagation_unless_told(cls, values: Any) -> Any:
        """A checkpoint knows its rule; a network from scratch has the default."""
        if isinstance(values, dict) and values.get("mode") is None and values.get("checkpoint") is None:
            return {**values, "mode": {"type": "backpropagation"}}
        return values


#: What `models.build` is told beside the arguments of an architecture.
_GIVEN = inspect.signature(models.build).parameters.keys() - {"arguments"}


class LoggingConfig(Section):
    """`logging`: what is written beside metrics.jsonl, which always is."""

    tensorboard: bool = True
    wandb: str | None = None
    """Weights & Biases: the name of a project (`pip install 'biotorch[wandb]'`)."""


class Config(Section):
    """One experiment, or with `sweep` several."""

    model_config = ConfigDict(title="biotorch experiment")

    imports: list[str] = Field(default_factory=list)
    """Modules, or .py files seen from the working folder, that register rules, layers or networks of your own."""
    experiment: ExperimentConfig
    data: DataConfig
    model: ModelConfig
    training: TrainingConfig | None = None
    """Without it, the checkpoint of `model` is evaluated."""
    infrastructure: InfrastructureConfig = InfrastructureConfig()
    cluster: ClusterConfig = ClusterConfig()
    """What --executor slurm and --executor ray ask for."""
    attacks: AttacksConfig | None = None
    """Study the robustness of the best model; `biotorch attack` does it without this section, too."""
    evaluation: bool = True
    """Evaluate the best model on the test set."""
    logging: LoggingConfig = LoggingConfig()
    sweep: dict[str, Any] = Field(default_factory=dict)
    """Axes of a grid: `key.path: [values]`, or named cases, `axis: {case: {key.path: value, ...}}`; where the
    axis is itself a key path, it takes the name of the case as its value."""

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
            text = f"a setting of images, and {self.data.dataset} is a text: leave it out"
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
            text = f"{training.optimizer.type} takes no weight_decay: leave it out, or take another optimizer"
            raise SectionError(dict.fromkeys(wrong, text))
        return self

    @model_validator(mode="after")
    def _something_to_do(self) -> Config:
        if self.training is None:
            if self.model.checkpoint is None:
                raise SectionError({"training": "missing: without it, model.checkpoint has to name what to evaluate"})
            if not self.evaluation:
                raise SectionError({"evaluation": "false, and there is no training: nothing is left to do"})
        return self
