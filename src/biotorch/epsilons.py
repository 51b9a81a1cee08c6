"""Radii of perturbations as the field writes them: `8/255`."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator, Field, WithJsonSchema

_NUMBER = r"[0-9]+(?:\.[0-9]+)?"
_FRACTION = rf"\s*({_NUMBER})\s*/\s*({_NUMBER})\s*"


def _read(value: object) -> object:
    """The number that `a/b` stands for; what is no text is left to pydantic, which would read true as 1."""
    if isinstance(value, bool):
        raise ValueError(f"{str(value).lower()} is no number")
    if not isinstance(value, str):
        return value
    parts = re.fullmatch(_FRACTION, value)
    if parts is None:
        raise ValueError(f"a number or a fraction such as 8/255 is needed, not the text {value!r}")
    above, below = map(float, parts.groups())
    if not below:
        raise ValueError(f"{value!r} divides by zero")
    return above / below


_SCHEMA = {"anyOf": [{"type": "number", "minimum": 0}, {"type": "string", "pattern": f"^{_FRACTION}$"}]}

#: A finite float from 0 on, read from a number or from a fraction of two, as a text: `"8/255"`.
Epsilon = Annotated[float, BeforeValidator(_read), Field(ge=0, allow_inf_nan=False), WithJsonSchema(_SCHEMA)]
