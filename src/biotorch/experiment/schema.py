"""The JSON schema of configurations, with the names that pydantic cannot know."""

from __future__ import annotations

from typing import Any

from biotorch import data, models, rules
from biotorch.experiment.config import Config
from biotorch.training.losses import loss_names
from biotorch.training.optimizers import optimizer_names
from biotorch.training.schedules import scheduler_names


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
