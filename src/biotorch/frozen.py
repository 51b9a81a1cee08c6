"""The base of every configuration section."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator


class SectionError(ValueError):
    """What is wrong with a section, by key, so that each problem is told at its own line.

    Args:
        problems: message by key of the section; "" is the section itself.
    """

    def __init__(self, problems: Mapping[str, str]) -> None:
        super().__init__("; ".join(f"{key}: {message}" if key else message for key, message in problems.items()))
        self.problems = dict(problems)

    def __reduce__(self) -> tuple[type[SectionError], tuple[dict[str, str]]]:
        """It travels between processes."""
        return type(self), (self.problems,)


class Section(BaseModel):
    """Frozen, closed and literal: an unknown key is an error, and so is `"3"` or `true` where a number belongs.

    A type with a reader of its own (a BeforeValidator, as `Epsilon` has) decides what it takes. The docstring under
    a field is its description in the JSON schema.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @model_validator(mode="before")
    @classmethod
    def _literal(cls, values: Any) -> Any:
        """pydantic reads true as 1, "3" as 3 and "no" as false, which in a configuration are mistakes."""
        if not isinstance(values, Mapping):
            return values
        problems = {}
        for name, field in cls.model_fields.items():
            if any(isinstance(each, BeforeValidator) for each in field.metadata):
                continue
            value, kinds = values.get(name), {field.annotation, *typing.get_args(field.annotation)}
            takes_numbers, takes_switches = bool(kinds & {int, float}), bool in kinds
            if isinstance(value, bool) and takes_numbers and not takes_switches:
                problems[name] = f"{str(value).lower()} is no number"
            elif isinstance(value, str) and takes_numbers and str not in kinds:
                problems[name] = f"a number is needed, not the text {value!r}"
            elif takes_switches and isinstance(value, str | int | float) and not isinstance(value, bool):
                problems[name] = f"true or false, not {value!r}"
        if problems:
            raise SectionError(problems)
        return values
