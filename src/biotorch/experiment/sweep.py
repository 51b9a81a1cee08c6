"""The points of a sweep: the grid over its axes, refined where several of them meet."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from biotorch.errors import SectionError

#: Values by dotted key path.
Changes = dict[str, Any]

#: They say where a point writes, which follows from its name.
_NOT_SWEPT = ("experiment.name", "experiment.output_dir", "sweep")

#: No axis: a list of what else is set where several axes meet.
_WHEN = "when"
_SET = "set"
_ZIP = "zip"


class Point(NamedTuple):
    """What one point of a sweep changes, for each change where in the document it stands, and the case of each axis."""

    changes: Changes
    places: dict[str, tuple[str, ...]]
    cases: dict[str, Any] = {}  # noqa: RUF012 - a tuple's default, never written to


class _Case(NamedTuple):
    name: Any
    label: str
    point: Point


class Refinement(NamedTuple):
    """An entry of `when`: at points where every condition holds, its changes are made."""

    conditions: dict[str, list[Any]]
    changes: Changes
    place: tuple[str, ...]

    def holds(self, tree: Mapping[str, Any], point: Point) -> bool:
        """Whether the configuration of a point, or its cases, are what the conditions ask for."""
        return all(
            str(point.cases[key]) in map(str, wanted)
            if key in point.cases and "." not in key
            else _at(tree, key) in wanted
            for key, wanted in self.conditions.items()
        )


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
        if key == _WHEN:
            continue
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
        places = {key: place for case in combination for key, place in case.point.places.items()}
        grid[name] = Point(changes, places, dict(zip(axes, (case.name for case in combination), strict=True)))
    return grid


def refinements(sweep: Mapping[str, Any]) -> list[Refinement]:
    """The entries of `when`, in their order.

    Raises:
        SectionError: one is not a mapping of conditions and `set`.
    """
    entries = sweep.get(_WHEN)
    if entries is None:
        return []
    if not isinstance(entries, list):
        raise SectionError({_WHEN: f"a list of {{key.path: value, ..., set: {{...}}}} is needed, not {entries!r}"})
    found, problems = [], {}
    for number, entry in enumerate(entries):
        try:
            found.append(_refinement(entry, (_WHEN, str(number))))
        except ValueError as error:
            problems[f"{_WHEN}.{number}"] = str(error)
    if problems:
        raise SectionError(problems)
    return found


def _refinement(entry: Any, place: tuple[str, ...]) -> Refinement:
    if not isinstance(entry, dict) or not all(isinstance(key, str) for key in entry):
        raise ValueError(f"conditions and `set` are needed, as in {{model.mode.type: fa, set: {{...}}}}, not {entry!r}")
    conditions = {key: value if isinstance(value, list) else [value] for key, value in entry.items() if key != _SET}
    changes = entry.get(_SET)
    if not isinstance(changes, dict) or not changes or not all(isinstance(key, str) for key in changes):
        raise ValueError(f"`set` is a mapping of key paths to values, not {changes!r}")
    if not conditions:
        raise ValueError("a condition is needed, such as model.mode.type: fa; what holds everywhere needs no `when`")
    _require_sweepable(changes)
    return Refinement(conditions, changes, ("sweep", *place))


def refined(point: Point, entry: Refinement) -> Point:
    """The point with what an entry of `when` sets there."""
    places = {key: (*entry.place, _SET, key) for key in entry.changes}
    return point._replace(changes=point.changes | entry.changes, places=point.places | places)


def _at(tree: Any, key: str) -> Any:
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, Mapping) else None
    return tree


def _cases(axis: Any, values: Any) -> list[_Case]:
    if not isinstance(axis, str):
        raise ValueError("the name of an axis is a word")
    if not isinstance(values, list | dict) or not values:
        raise ValueError(f"an axis is a list of values or a mapping of named cases, not {values!r}")
    if axis == "sweep" or not all(axis.split(".")):
        raise ValueError("the name of an axis is a key path, or a word of your own")
    if isinstance(values, dict) and list(values) == [_ZIP]:
        return _zipped(axis, values[_ZIP])
    is_key = "." in axis
    if isinstance(values, list):
        if not is_key:
            raise ValueError("a list needs a key path such as training.optimizer.lr as its axis; named cases do not")
        if any(value in values[:number] for number, value in enumerate(values)):
            raise ValueError(f"a value stands twice in {values!r}")
        return [_Case(value, _labelled(axis, value), _point({axis: value}, (axis,), axis)) for value in values]
    cases = []
    for name, changes in values.items():
        if not isinstance(changes, dict | None) or not all(isinstance(key, str) for key in changes or {}):
            raise ValueError(f"case {name!r} is a mapping of key paths to values, not {changes!r}")
        own = {axis: name} if is_key else {}
        point = _point(own | (changes or {}), (axis, str(name)), axis)
        cases.append(_Case(name, _labelled(axis, name), point))
    return cases


def _zipped(axis: str, lists: Any) -> list[_Case]:
    """The first values of all lists, then the second ones."""
    if "." in axis:
        raise ValueError("the name of an axis with a zip is a word of your own")
    if not isinstance(lists, dict) or not lists or not all(isinstance(each, list) and each for each in lists.values()):
        raise ValueError(f"zip is a mapping of key paths to lists of values, not {lists!r}")
    lengths = {key: len(values) for key, values in lists.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{length} of {key}" for key, length in lengths.items())
        raise ValueError(f"zip needs lists of one length, not {told}")
    cases = []
    for values in zip(*lists.values(), strict=True):
        changes = dict(zip(lists, values, strict=True))
        label = ",".join(_labelled(key, value) for key, value in changes.items())
        cases.append(_Case(label, label, _point(changes, (axis, _ZIP), axis)))
    return cases


def _labelled(axis: str, value: Any) -> str:
    """Such as `lr=0.1`: an axis and its value, as part of a folder's name."""
    name = "rule" if axis == "model.mode.type" else _word(axis.rsplit(".", 1)[-1])
    return f"{name}={_word(value)}"


def _require_sweepable(changes: Changes) -> None:
    for key in changes:
        for fixed in _NOT_SWEPT:
            if _overlap(key, fixed):
                raise ValueError(f"{key} cannot be swept: a point's folder follows from its name")


def _point(changes: Changes, place: tuple[str, ...], axis: str) -> Point:
    _require_sweepable(changes)
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


def set_value(tree: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key path in place; below `sweep`, the key path of an axis is one key: sweep.experiment.seed=[0, 1].

    Raises:
        SectionError: the path runs through a plain value.
    """
    section, _, axis = key.partition(".")
    if section == "sweep" and isinstance(tree.get("sweep") or {}, dict):
        axes = dict(tree.get("sweep") or {})
        if isinstance(value, list) or axis in axes:
            tree["sweep"] = {**axes, axis: value}
            return
    set_key(tree, key, value)


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
