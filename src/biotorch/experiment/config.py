"""The configuration file: the paper's format (appendix 6.2), plus `sweep`."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from biotorch import models, rules
from biotorch.data import DataConfig
from biotorch.frozen import Section
from biotorch.names import nearest, unknown
from biotorch.training import TrainingConfig


class ConfigError(ValueError):
    """A configuration is wrong; the message lists every problem with its key path."""


class ExperimentConfig(Section):
    """`experiment`: its name, where it writes, and what it can repeat."""

    name: str
    output_dir: Path = Path("runs")
    seed: int = 0
    #: Only deterministic PyTorch operations; an operation that has no such version raises.
    deterministic: bool = True


class ModeConfig(Section):
    """`model.mode`: a learning rule and its options."""

    type: str
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _rule_exists(self) -> ModeConfig:
        rules.make(self.type, **self.options)
        return self


class LossConfig(Section):
    """`model.loss_function`."""

    name: Literal["cross_entropy"] = "cross_entropy"


class ModelConfig(Section):
    """`model`: an architecture under a rule."""

    architecture: str
    mode: ModeConfig = ModeConfig(type="backpropagation")
    pretrained: bool = False
    loss_function: LossConfig = LossConfig()

    @field_validator("architecture")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in models.available():
            raise unknown("architecture", name, models.available())
        return name


class InfrastructureConfig(Section):
    """`infrastructure`."""

    #: -1 is the CPU, another number a CUDA device (of a list, the first).
    gpus: int | list[int] = -1


class Config(Section):
    """One experiment, or with `sweep` every combination of the values it lists by dotted path."""

    model_config = ConfigDict(frozen=True, extra="forbid", title="biotorch experiment")

    experiment: ExperimentConfig
    data: DataConfig
    model: ModelConfig
    training: TrainingConfig
    infrastructure: InfrastructureConfig = InfrastructureConfig()
    #: Evaluate the best model on the test set.
    evaluation: bool = True
    #: Key path -> the values it takes.
    sweep: dict[str, list[Any]] = Field(default_factory=dict)


def read(path: Path | str, overrides: Sequence[str] = ()) -> Config:
    """The configuration in a YAML file, with `key.path=value` overrides (values in YAML, too).

    An override of a key that the sweep varies takes it out of the sweep.

    Raises:
        ConfigError: no such file, no valid YAML, or unknown keys and wrong values: all of them, listed.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"no configuration file {path}")
    tree = _yaml(path.read_text(), str(path))
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} holds no configuration: expected sections such as experiment, data, model")
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator:
            raise ConfigError(f"{override!r} is no override: write key.path=value")
        set_key(tree, key, _yaml(value, f"override {override}"))
        if isinstance(tree.get("sweep"), dict):
            tree["sweep"].pop(key, None)
    return validate(tree, str(path))


class _Loader(yaml.SafeLoader):
    """PyYAML reads `1e-3` as a string; YAML 1.2, and everybody who writes a learning rate, as a number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _yaml(text: str, source: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source} is not valid YAML: {error}") from error


def validate(tree: Mapping[str, Any], source: str) -> Config:
    """The configuration of a tree of plain values, checked at each of its sweep points.

    What the sweep sets need not be set outside of it: the first point stands in.
    """
    sweep = tree.get("sweep")
    first = {}
    if isinstance(sweep, dict):
        first = {key: values[0] for key, values in sweep.items() if isinstance(values, list) and values}
    config = _parse(changed(tree, first), source)
    if config.sweep:
        for changes in points(config).values():
            _parse(changed(tree, changes), f"{source}, sweep point {changes}")
    return config


def points(config: Config) -> dict[str, dict[str, Any]]:
    """The grid of the sweep: a name per point and the values it sets. Without a sweep, one point."""
    grid: dict[str, dict[str, Any]] = {"": {}}
    for key, values in config.sweep.items():
        label = key.rsplit(".", 1)[-1] if key != "model.mode.type" else "rule"
        grid = {
            f"{name},{label}={value}".lstrip(","): {**changes, key: value}
            for name, changes in grid.items()
            for value in values
        }
    return grid


def at_point(config: Config, changes: Mapping[str, Any]) -> Config:
    """The configuration of one point of the sweep, without the sweep."""
    tree = config.model_dump(mode="json")
    tree["sweep"] = {}
    return Config.model_validate(changed(tree, changes))


def changed(tree: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `tree` with the values at dotted key paths replaced."""
    result = copy.deepcopy(dict(tree))
    for key, value in changes.items():
        set_key(result, key, value)
    return result


def set_key(tree: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key path in place. Raises ConfigError where the path runs through a plain value."""
    *parents, last = key.split(".")
    for parent in parents:
        below = tree.setdefault(parent, {})
        if not isinstance(below, dict):
            raise ConfigError(f"{key}: {parent} is a value, not a section")
        tree = below
    tree[last] = value


def _parse(tree: Mapping[str, Any], source: str) -> Config:
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        lines = "".join(f"\n  {_explain(problem)}" for problem in error.errors())
        raise ConfigError(f"{source}: {error.error_count()} problem(s){lines}") from error


def _explain(problem: Any) -> str:
    location = [str(part) for part in problem["loc"]]
    key = ".".join(location) or "(top)"
    if problem["type"] == "extra_forbidden":
        return f"{key}: unknown key.{nearest(location[-1], _keys_at(location[:-1]))}"
    if problem["type"] == "missing":
        return f"{key}: missing"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{key}: {message}" if problem["type"] == "value_error" else f"{key}: {message}, got {problem['input']!r}"


def _keys_at(location: Sequence[str]) -> list[str]:
    section: Any = Config
    for part in location:
        field = section.model_fields.get(part)
        kinds = [] if field is None else [field.annotation, *getattr(field.annotation, "__args__", ())]
        section = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
        if section is None:
            return []
    return list(section.model_fields)
