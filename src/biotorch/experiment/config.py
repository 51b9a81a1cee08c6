"""The configuration of an experiment, in the format of the paper (appendix 6.2) with further keys."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field, field_validator, model_validator

from biotorch._sections import Place, Section, place
from biotorch.data import DataConfig, Kind, Task
from biotorch.errors import ConfigError, SectionError
from biotorch.experiment.cluster import ClusterConfig
from biotorch.experiment.importing import check_name
from biotorch.experiment.model import ModelConfig
from biotorch.robustness.config import AttacksConfig
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


class LoggingConfig(Section):
    """`logging`: logs to write besides metrics.jsonl, which is always written."""

    tensorboard: bool = True
    wandb: str | None = None
    """Name of a project of Weights & Biases to log to (`pip install 'biotorch-feedback[wandb]'`)."""


class Config(Section):
    """One experiment, or several with `sweep`.

    Examples:
        >>> config = biotorch.experiment.read("study.yaml").config
        >>> config.data.dataset, config.training.hyperparameters.epochs, config.model.mode.type
        ('digits', 2, 'backpropagation')
    """

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

    def for_task(self, task: Task) -> Config:
        """Copy that says which loss is used, where this configuration leaves it to the task of the data."""
        if self.model.loss_function is not None:
            return self
        model = self.model.model_copy(update={"loss_function": LossConfig.default(task)})
        return self.model_copy(update={"model": model})

    @field_validator("imports")
    @classmethod
    def _modules(cls, names: list[str]) -> list[str]:
        for name in names:
            check_name(name)
        return names

    @model_validator(mode="after")
    def _settings_fit_the_inputs(self) -> Config:
        if problems := self.misplaced(self.data.kinds):
            raise SectionError(problems)
        return self

    def misplaced(self, kinds: Collection[Kind]) -> dict[str, str]:
        """Problems, by key, of sections that do not go with the data, if the data are of one of these kinds."""
        training = self.training
        images = {"attacks": self.attacks, "training.adversarial": training and training.adversarial}
        numbers = {"training.noise_pretraining": training and training.noise_pretraining}
        told = f"but {self.data.described(kinds)}: leave it out"
        problems: dict[str, str] = {}
        if "images" not in kinds:
            problems |= {key: f"a setting of images, {told}" for key, value in images.items() if value is not None}
        if set(kinds) == {"text"}:
            problems |= {
                key: f"noise is made of numbers, {told}" for key, value in numbers.items() if value is not None
            }
        return problems

    def require_kind(self, kind: Kind) -> None:
        """Raise ConfigError if a section does not go with data of this kind, which of .npz files only reading shows."""
        if problems := self.misplaced({kind}):
            raise ConfigError("; ".join(f"{key}: {text}" for key, text in problems.items()))

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
