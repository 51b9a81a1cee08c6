"""The points of a sweep: the grid over its axes."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from biotorch.frozen import SectionError

#: Values by dotted key path.
Changes = dict[str, Any]

#: They say where a point writes, which follows from its name.
_NOT_SWEPT = ("experiment.name", "experiment.output_dir", "sweep")


class Point(NamedTuple):
    """What one point of a sweep changes, and for each change where in the document it stands."""

    changes: Changes
    places: dict[str, tuple[str, ...]]


class _Case(NamedTuple):
    label: str
    point: Point


def points(sweep: Any) -> dict[str, Point]:
    """The points of the grid by name. Without a sweep, one point named "".

    Raises:
        SectionError: an axis without values, a case that is no mapping, a key that two axes set or that
            cannot be swept, two points that are the same.
    """
    if not isinstance(sweep, Mapping):
        raise SectionError({"": f"a mapping of axes to their values is needed, not {sweep!r}"})
    problems: dict[str, str] = {}
    axes: dict[str, list[_Case]] = {}
    for key, values in sweep.items():
        try:
            axes[key] = _cases(key, values)
        except ValueError as error:
            problems[str(key)] = str(error)
    problems |= _shared(axes)
    if problems:
        raise SectionError(problems)
    grid: dict[str, Point] = {}
    for combination in itertools.product(*axes.values()):
        name = ",".join(case.label for case in combination)
        changes = {key: value for case in combination for key, value in case.point.changes.items()}
        if name in grid:
            raise SectionError({"": f"two points would both write into {name!r}: give one of them another name"})
        grid[name] = Point(changes, {key: place for case in combination for key, place in case.point.places.items()})
    return grid


def _cases(axis: Any, values: Any) -> list[_Case]:
    if not isinstance(axis, str):
        raise ValueError("the name of an axis is a word")
    if not isinstance(values, list | dict) or not values:
        raise ValueError(f"an axis is a list of values or a mapping of named cases, not {values!r}")
    if axis == "sweep" or not all(axis.split(".")):
        raise ValueError("the name of an axis is a key path, or a word of your own")
    is_key = "." in axis
    label = "rule" if axis == "model.mode.type" else _word(axis.rsplit(".", 1)[-1])
    if isinstance(values, list):
        if not is_key:
            raise ValueError("a list needs a key path such as training.optimizer.lr as its axis; named cases do not")
        if any(value in values[:number] for number, value in enumerate(values)):
            raise ValueError(f"a value stands twice in {values!r}")
        return [_Case(f"{label}={_word(value)}", _point({axis: value}, (axis,), axis)) for value in values]
    cases = []
    for name, changes in values.items():
        if not isinstance(changes, dict | None) or not all(isinstance(key, str) for key in changes or {}):
            raise ValueError(f"case {name!r} is a mapping of key paths to values, not {changes!r}")
        own = {axis: name} if is_key else {}
        cases.append(_Case(f"{label}={_word(name)}", _point(own | (changes or {}), (axis, str(name)), axis)))
    return cases


def _point(changes: Changes, place: tuple[str, ...], axis: str) -> Point:
    for key in changes:
        for fixed in _NOT_SWEPT:
            if _overlap(key, fixed):
                raise ValueError(f"{key} cannot be swept: a point's folder follows from its name")
    return Point(changes, {key: ("sweep", *place, *(() if key == axis else (key,))) for key in changes})


def _shared(axes: Mapping[str, list[_Case]]) -> dict[str, str]:
    """Keys that two axes set, of which one would win without a word."""
    keys = {axis: {key for case in cases for key in case.point.changes} for axis, cases in axes.items()}
    return {
        axis: f"it sets {mine}, and the axis {other} sets {theirs}: which of the two is meant?"
        for other, axis in itertools.combinations(axes, 2)
        for mine in sorted(keys[axis])
        for theirs in sorted(keys[other])
        if _overlap(mine, theirs)
    }


def _overlap(one: str, other: str) -> bool:
    """Whether one key path is the other, or a section around it."""
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


def _word(value: Any) -> str:
    """The value as part of a folder's name."""
    return re.sub(r"[^\w.+=-]+", "_", str(value)).strip("_") or "empty"


def changed(tree: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `tree` with the values at dotted key paths replaced."""
    result = copy.deepcopy(dict(tree))
    for key, value in changes.items():
        set_key(result, key, value)
    return result


def set_key(tree: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key path in place. Raises SectionError where the path runs through a plain value."""
    *parents, last = key.split(".")
    for number, parent in enumerate(parents):
        below = tree.get(parent)
        if below is None:  # an empty section, or none
            below = tree[parent] = {}
        if not isinstance(below, dict):
            raise SectionError({".".join(parents[: number + 1]): f"is a value, not a section that could hold {key}"})
        tree = below
    tree[last] = value


def overridden(sweep: Any, key: str, value: Any) -> Any:
    """The sweep where an override sets `key` for all points.

    An axis over that key is left out; of one with named cases the case of that name stays, with all it sets.
    """
    if not isinstance(sweep, dict):
        return sweep
    result = {}
    for axis, values in sweep.items():
        if axis == key and isinstance(values, dict) and value in values:
            result[axis] = {value: values[value]}
        elif not f"{axis}.".startswith(f"{key}."):
            result[axis] = values
    return result
