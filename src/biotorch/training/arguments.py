"""Classes of torch by name, and a check of their arguments against their signatures."""

from __future__ import annotations

import collections.abc
import contextlib
import functools
import inspect
import math
import reprlib
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError

from biotorch._names import unknown
from biotorch.errors import SectionError

_FINITE = ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False)


def class_named(what: str, key: str, name: str, classes: Mapping[str, type], excuses: Mapping[str, str]) -> Any:
    """Find a class by its name, without regard to case and underscores: `RMSProp`, `multistep_lr`, `cross_entropy`.

    Args:
        what: kind of class, for the message.
        key: key of the configuration that gives the name, for the message.
        name: name to find; the suffix `Loss` may be left out.
        classes: the classes by name.
        excuses: for each class that cannot be used here, the reason.

    Raises:
        SectionError: at `key`: there is no such class, or it is one of `excuses`.
    """
    wanted = _bare(name)
    for found, value in classes.items():
        if wanted in (_bare(found), _bare(found).removesuffix("loss")):
            if found in excuses:
                raise SectionError({key: f"{found} cannot be used here: {excuses[found]}"})
            return value
    raise SectionError({key: str(unknown(what, name, [found for found in classes if found not in excuses]))})


def _bare(name: str) -> str:
    return name.lower().replace("_", "")


def classes(module: Any, base: type) -> dict[str, type]:
    """Public classes of `module` that derive from `base`, by name."""
    return {
        name: value
        for name, value in vars(module).items()
        if inspect.isclass(value) and issubclass(value, base) and value is not base and not name.startswith("_")
    }


def parameters(kind: type, given: Iterable[str]) -> dict[str, inspect.Parameter]:
    """Parameters of the class `kind`, without those in `given`, which the package passes itself."""
    return {name: each for name, each in inspect.signature(kind).parameters.items() if name not in given}


def checked(kind: type, arguments: Mapping[str, Any], given: Iterable[str], own: Iterable[str] = ()) -> dict[str, Any]:
    """Convert `arguments` to the types in the signature of `kind`; a list becomes a tensor if the type is a tensor.

    `own` are further keys of the section, which the message about an unknown name suggests, too.

    Raises:
        SectionError: lists all unknown names, missing arguments and wrong types.
    """
    valid = parameters(kind, given)
    hints = _hints(kind)
    known = [*valid, *own]
    problems = {
        name: str(unknown(f"argument of {kind.__name__}", name, known)) for name in arguments if name not in valid
    }
    for name, parameter in valid.items():
        if parameter.default is parameter.empty and name not in arguments:
            problems[name] = f"missing: {kind.__name__} needs this argument"
    result: dict[str, Any] = {}
    for name, value in arguments.items():
        if name in valid:
            try:
                result[name] = _typed(hints.get(name, Any), value)
            except ValidationError as error:
                problems[name] = f"{error.errors()[0]['msg']}, got {reprlib.repr(value)}"
    if problems:
        raise SectionError(problems)
    return result


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    # torch imports some names in its annotations only for type checkers.
    return typing.get_type_hints(inspect.getattr_static(kind, "__init__"), localns=vars(collections.abc))


def _typed(hint: Any, value: Any) -> Any:
    kinds = (hint, *typing.get_args(hint))
    if torch.Tensor in kinds and isinstance(value, list):
        return torch.tensor(TypeAdapter(list[float], config=_FINITE).validate_python(value))
    if isinstance(value, bool | str) and {int, float} & set(kinds) and type(value) not in kinds:
        TypeAdapter(float, config=ConfigDict(strict=True)).validate_python(value)  # raises: not a number
    if isinstance(value, float) and not math.isfinite(value):
        TypeAdapter(float, config=_FINITE).validate_python(value)  # raises
    if typing.get_origin(hint) is collections.abc.Iterable:  # pydantic would check the elements only later
        hint = list[typing.get_args(hint)]  # type: ignore[misc]
    own = isinstance(hint, type) and hasattr(hint, "__pydantic_complete__")
    return TypeAdapter(hint, config=None if own else _FINITE).validate_python(value)


def completed(kind: type, arguments: Mapping[str, Any], given: Iterable[str]) -> dict[str, Any]:
    """Arguments of `kind` as plain values of their types, with the defaults of its signature filled in."""
    with contextlib.suppress(SectionError):  # the arguments of another version of torch
        arguments = checked(kind, arguments, given)
    defaults = {name: each.default for name, each in parameters(kind, given).items() if each.default is not each.empty}
    values = {**defaults, **arguments}
    return {name: value.tolist() if isinstance(value, torch.Tensor) else value for name, value in values.items()}


def missing(values: Mapping[str, Any], *keys: str) -> dict[str, str]:
    """The problem "missing" for each of `keys` that is not in `values`."""
    return {key: "missing" for key in keys if key not in values}


def require(
    values: dict[str, Any],
    find: Callable[[str], Any],
    needed: tuple[str, ...],
    given: tuple[str, ...],
    own: tuple[str, ...] = (),
    ignored: tuple[str, ...] = (),
) -> None:
    """Raise a SectionError that lists missing keys, an unknown type, and arguments that the type does not take.

    Args:
        values: the section, whose `type` names a class.
        find: function from this name to the class.
        needed: keys that must be there.
        given: parameters of the class that the package passes itself.
        own: keys of the section that are not parameters of the class.
        ignored: arguments that are allowed even if the class does not take them.
    """
    problems = missing(values, *needed)
    if isinstance(values.get("type"), str):
        try:
            kind = find(values["type"])
            valid = parameters(kind, given)
            skipped = {*needed, *own, *(name for name in ignored if name not in valid)}
            checked(kind, {key: value for key, value in values.items() if key not in skipped}, given, (*needed, *own))
        except SectionError as error:
            problems |= error.problems
    if problems:
        raise SectionError(problems)


def attempt(build: Callable[[], object]) -> None:
    """Call `build` and raise its error as a SectionError, so that torch refuses wrong values before the first epoch."""
    try:
        build()
    except (ValueError, TypeError, AttributeError, ArithmeticError, LookupError, RuntimeError) as error:
        raise SectionError({"": f"{error}"}) from error
