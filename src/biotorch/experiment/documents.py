"""YAML as everybody reads it, and the JSON schema of configurations."""

from __future__ import annotations

import re
from typing import Any

import yaml

from biotorch import data, models, rules
from biotorch.experiment.config import Config
from biotorch.training.losses import loss_names
from biotorch.training.optimizers import optimizer_names
from biotorch.training.schedules import scheduler_names

#: PyYAML reads `1e-3` as a string; YAML 1.2, and everybody who writes a learning rate, as a number.
_FLOAT = ("tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789"))


class Loader(yaml.SafeLoader):
    """Reads numbers in scientific notation."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """A date that does not exist, a number of 5,000 digits: told with its line."""
        try:
            return super().construct_object(node, deep)
        except ValueError as error:
            raise yaml.MarkedYAMLError(problem=str(error), problem_mark=node.start_mark) from error


class _Dumper(yaml.SafeDumper):
    """Quotes strings that `Loader` would read as numbers."""


Loader.add_implicit_resolver(*_FLOAT)
_Dumper.add_implicit_resolver(*_FLOAT)


def dump(tree: Any) -> str:
    """A tree of plain values as YAML that `Loader` reads back as it was."""
    text: str = yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return text


def json_schema() -> dict[str, Any]:
    """For editors: they complete keys and names, and mark what is wrong while it is typed.

    Names of rules, optimizers and the like are examples rather than the only values: their spelling is
    free (`multistep_lr`), and users register rules of their own.
    """
    schema = Config.model_json_schema()
    names = {
        ("ModeConfig", "type"): rules.available(),
        ("ModelConfig", "architecture"): models.available(),
        ("DataConfig", "dataset"): data.available(),
        ("OptimizerConfig", "type"): optimizer_names(),
        ("SchedulerConfig", "type"): scheduler_names(),
        ("LossConfig", "name"): loss_names(),
    }
    for (section, key), values in names.items():
        schema["$defs"][section]["properties"][key]["examples"] = values
    for section in (schema, *schema["$defs"].values()):
        section.pop("required", None)  # a sweep may set what a section leaves open
    precision = schema["$defs"]["InfrastructureConfig"]["properties"]["precision"]
    precision["enum"].append(32)
    precision.pop("type", None)
    metrics = schema["$defs"]["MetricsConfig"]["properties"]
    for spelling in ("layer_alignment", "weight_alignment"):  # pydantic knows the first of two alone
        metrics.setdefault(spelling, {"type": "boolean", "default": False})
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
