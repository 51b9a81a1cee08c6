"""Reading and writing of YAML with YAML 1.2's numbers, and the JSON schema of configurations."""

from __future__ import annotations

import re
from typing import Any

import yaml

from biotorch import data, models, rules
from biotorch.experiment.config import Config
from biotorch.training.losses import loss_names
from biotorch.training.optimizers import optimizer_names
from biotorch.training.schedules import scheduler_names

#: Numbers in scientific notation. PyYAML reads `1e-3` as a string, YAML 1.2 as a number.
_FLOAT = ("tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789"))


class Loader(yaml.SafeLoader):
    """YAML loader that reads numbers in scientific notation as numbers."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Construct a value; an impossible one (such as the date 2024-02-31) raises MarkedYAMLError with its line."""
        try:
            return super().construct_object(node, deep)
        except ValueError as error:
            raise yaml.MarkedYAMLError(problem=str(error), problem_mark=node.start_mark) from error


class _Dumper(yaml.SafeDumper):
    """YAML dumper that quotes strings which `Loader` would read as numbers."""


Loader.add_implicit_resolver(*_FLOAT)
_Dumper.add_implicit_resolver(*_FLOAT)


def dump(tree: Any) -> str:
    """YAML text of a tree of plain values; `Loader` reads it back unchanged."""
    text: str = yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return text


def json_schema() -> dict[str, Any]:
    """JSON schema of configurations, with which editors complete keys and names, and mark errors.

    Names of rules, optimizers and the like are given as examples and not as the only values, because spellings may vary
    (`multistep_lr`) and users register their own rules.
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
        section.pop("required", None)  # a sweep may set keys that a section omits
    precision = schema["$defs"]["InfrastructureConfig"]["properties"]["precision"]
    precision["enum"].append(32)
    precision.pop("type", None)
    metrics = schema["$defs"]["MetricsConfig"]["properties"]
    for spelling in ("layer_alignment", "weight_alignment"):  # pydantic's schema has only the first of two aliases
        metrics.setdefault(spelling, {"type": "boolean", "default": False})
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
