"""Base class of the configuration sections, and the type of perturbation radii such as `8/255`."""

from __future__ import annotations

import os
import re
import typing
from collections.abc import Callable, Mapping
from pathlib import Path, PurePath
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import CoreSchema, core_schema

from biotorch.errors import SectionError

_NUMBER = r"[0-9]+(?:\.[0-9]+)?"
_FRACTION = rf"\s*({_NUMBER})\s*/\s*({_NUMBER})\s*"


def read_radius(value: object) -> object:
    """Read a text `a/b` as a number. Other values except booleans are left to pydantic, which reads true as 1."""
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

#: A finite float of at least 0, read from a number or from the text of a fraction, such as `"8/255"`.
Epsilon = Annotated[float, BeforeValidator(read_radius), Field(ge=0, allow_inf_nan=False), WithJsonSchema(_SCHEMA)]


def place(path: Path | str) -> Path:
    """Path of a user with `~` expanded. Raises ValueError if no file system or no user could have it."""
    text = str(path)
    if not text.isprintable() or any(len(os.fsencode(part)) > _NAME for part in Path(text).parts):
        raise ValueError(f"a path in printable characters, each name of at most {_NAME} bytes, is needed, not {text!r}")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{text!r}: there is no such user, whose home ~ could be") from error


#: Path of a file or folder, see `place`.
Place = Annotated[Path, AfterValidator(place)]

#: Most bytes of a file's name, on all usual systems.
_NAME = 255


class Section(BaseModel):
    """Base of the configuration sections: immutable, and strict about keys and types.

    An unknown key is an error, and so is `"3"` or `true` in the place of a number. A type with a reader of its own (a
    BeforeValidator, as in `Epsilon`) decides itself which values it takes. The docstring under a field is its
    description in the JSON schema.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Takes a section that exists already as it is: pydantic would run its `after` validators again."""

        def once(value: Any, check: Callable[[Any], Any]) -> Any:
            return value if isinstance(value, cls) else check(value)

        inner: Any = dict(handler.resolve_ref_schema(handler(source)))
        return core_schema.no_info_wrap_validator_function(once, inner, ref=inner.pop("ref", None))

    @model_validator(mode="before")
    @classmethod
    def _literal(cls, values: Any) -> Any:
        """Refuse values that pydantic would convert silently: true as 1, "3" as 3 and "no" as false."""
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

    @classmethod
    def completed(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Plain values of a section with all defaults filled in; equal settings then have equal values.

        Values of any version are taken, unchecked: keys that do not exist any more, and names that are not registered,
        stay as they are. A section that takes the arguments of a class fills in the defaults of its signature, too.
        """
        found = dict(values)
        for name, field in cls.model_fields.items():
            if name not in found and not field.is_required():
                found[name] = field.get_default(call_default_factory=True)
            if name in found:
                found[name] = _completed(field.annotation, found[name])
        return found


def _completed(kind: Any, value: Any) -> Any:
    """Value of a field, whose type `kind` may be or hold sections, as plain values without gaps."""
    if isinstance(value, Section):
        value = value.model_dump(mode="json")
    if isinstance(value, PurePath):
        return str(value)
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(kind, type) and issubclass(kind, Section):
        return kind.completed(value) if isinstance(value, Mapping) else value
    if origin is dict:
        named = isinstance(value, Mapping)
        return {name: _completed(parts[1], each) for name, each in value.items()} if named else value
    for part in parts[:1] if origin is Annotated else parts:
        value = _completed(part, value)
    return value


def subsection(kind: type[BaseModel], name: str) -> type[BaseModel] | None:
    """Type of the section that a key of `kind` holds, or None if it holds a plain value or does not exist."""
    field = kind.model_fields.get(name)
    kinds = [] if field is None else [field.annotation, *typing.get_args(field.annotation)]
    return next((each for each in kinds if isinstance(each, type) and issubclass(each, BaseModel)), None)


_Kind = TypeVar("_Kind", bound=BaseModel)


class Checker:
    """Validates trees of plain values; a section that several trees share, the same object, is validated once."""

    def __init__(self) -> None:
        self._known: dict[tuple[type, int], tuple[Any, Any]] = {}

    def check(self, kind: type[_Kind], tree: Mapping[str, Any]) -> _Kind:
        """Make the section `kind` from a tree. Raises ValidationError."""
        return kind.model_validate({name: self._checked(subsection(kind, name), value) for name, value in tree.items()})

    def _checked(self, kind: type[BaseModel] | None, value: Any) -> Any:
        if kind is None or not isinstance(value, dict):
            return value
        if (kind, id(value)) not in self._known:
            try:
                result: Any = self.check(kind, value)
            except ValidationError:  # the section around it will tell, with the whole key path
                result = value
            self._known[kind, id(value)] = (value, result)  # as long as the value is kept, no other one has its id
        return self._known[kind, id(value)][1]
