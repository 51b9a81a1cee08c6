"""Points of a sweep: the grid over its axes, and changes at points where several axes take certain values."""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from biotorch.errors import SectionError

#: Changes of a configuration: values by dotted key path.
Changes = dict[str, Any]

#: Keys that a sweep must not set, because a point's folder follows from its name.
_NOT_SWEPT = ("experiment.name", "experiment.output_dir", "sweep")

#: Key of a sweep that is not an axis: a list of further changes, each with conditions on the axes.
_WHEN = "when"
_SET = "set"
_ZIP = "zip"

#: Most points of a grid.
_MOST = 10_000
#: Most sections around a key that is set.
_DEEPEST = 20
#: Most bytes of a file's name, on all usual systems.
_NAME = 255


class Point(NamedTuple):
    """Changes of one sweep point, the place of each change in the document, and the chosen case of each axis."""

    changes: Changes
    places: dict[str, tuple[str, ...]]
    cases: dict[str, Any] = {}  # noqa: RUF012 - a tuple's default, never written to


class _Case(NamedTuple):
    name: Any
    label: str
    point: Point


class Refinement(NamedTuple):
    """Entry of `when`: changes that are made at points where all of its conditions hold."""

    conditions: dict[str, list[Any]]
    changes: Changes
    place: tuple[str, ...]

    def holds(self, tree: Mapping[str, Any], point: Point) -> bool:
        """Whether the configuration `tree` or the cases of a point fulfil all conditions."""
        return all(
            str(point.cases[key]) in map(str, wanted)
            if key in point.cases and "." not in key
            else _at(tree, key) in wanted
            for key, wanted in self.conditions.items()
        )


def points(sweep: Any) -> dict[str, Point]:
    """Points of the grid, by name. An empty sweep has a single point, named "".

    Raises:
        SectionError: an axis has no values, a case is not a mapping, two axes set one key, a key cannot be swept, two
            points have the same name or one that is too long for a folder, or there are too many points.
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
    count = math.prod(map(len, axes.values()))
    if count > _MOST:
        raise SectionError({"": f"the axes make {count:,} points, but a study has at most {_MOST:,}"})
    grid: dict[str, Point] = {}
    for combination in itertools.product(*axes.values()):
        name = ",".join(case.label for case in combination)
        changes = {key: value for case in combination for key, value in case.point.changes.items()}
        if name in grid:
            raise SectionError({"": f"two points would both write into {name!r}; give one of them another name"})
        if len(os.fsencode(name)) > _NAME:
            text = f"the folder's name {name!r} is longer than {_NAME} bytes; give the values names, as in "
            raise SectionError({"": f"{text}{{size: {{small: {{...}}, large: {{...}}}}}}"})
        places = {key: place for case in combination for key, place in case.point.places.items()}
        grid[name] = Point(changes, places, dict(zip(axes, (case.name for case in combination), strict=True)))
    return grid


def refinements(sweep: Mapping[str, Any]) -> list[Refinement]:
    """Entries of `when`, in their order.

    Raises:
        SectionError: an entry is not a mapping of conditions and `set`.
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
        raise ValueError(f"`set` must be a mapping of key paths to values, not {changes!r}")
    if not conditions:
        raise ValueError("a condition is needed, such as model.mode.type: fa; settings for all points need no `when`")
    _require_sweepable(changes)
    return Refinement(conditions, changes, ("sweep", *place))


def refined(point: Point, entry: Refinement) -> Point:
    """Copy of the point with the changes of a `when` entry."""
    places = {key: (*entry.place, _SET, key) for key in entry.changes}
    return point._replace(changes=point.changes | entry.changes, places=point.places | places)


def _at(tree: Any, key: str) -> Any:
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, Mapping) else None
    return tree


def _cases(axis: Any, values: Any) -> list[_Case]:
    if not isinstance(axis, str):
        raise ValueError("the name of an axis must be a word")
    if not isinstance(values, list | dict) or not values:
        raise ValueError(f"an axis must be a list of values or a mapping of named cases, not {values!r}")
    if axis == "sweep" or not all(axis.split(".")):
        raise ValueError("the name of an axis must be a key path, or a word of your own")
    if isinstance(values, dict) and list(values) == [_ZIP]:
        return _zipped(axis, values[_ZIP])
    is_key = "." in axis
    if isinstance(values, list):
        if not is_key:
            raise ValueError("the axis of a list must be a key path, such as training.optimizer.lr")
        if _repeated(values):
            raise ValueError(f"a value occurs twice in {values!r}")
        return [_Case(value, _labelled(axis, value), _point({axis: value}, (axis,), axis)) for value in values]
    cases = []
    for name, changes in values.items():
        if not isinstance(changes, dict | None) or not all(isinstance(key, str) for key in changes or {}):
            raise ValueError(f"case {name!r} must be a mapping of key paths to values, not {changes!r}")
        own = {axis: name} if is_key else {}
        point = _point(own | (changes or {}), (axis, str(name)), axis)
        cases.append(_Case(name, _labelled(axis, name), point))
    return cases


def _zipped(axis: str, lists: Any) -> list[_Case]:
    """Cases of a zipped axis: the first values of all lists together, then the second ones, and so on."""
    if "." in axis:
        raise ValueError("the name of an axis with a zip must be a word of your own, not a key path")
    if not isinstance(lists, dict) or not lists or not all(isinstance(each, list) and each for each in lists.values()):
        raise ValueError(f"zip must be a mapping of key paths to lists of values, not {lists!r}")
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


def _repeated(values: Sequence[Any]) -> bool:
    """Whether two values are equal; lists and mappings are compared one by one."""
    plain = [value for value in values if not isinstance(value, list | dict)]
    nested = [value for value in values if isinstance(value, list | dict)]
    return len(set(plain)) < len(plain) or any(value in nested[:number] for number, value in enumerate(nested))


def _labelled(axis: str, value: Any) -> str:
    """Axis and value as part of a folder's name, such as `lr=0.1`."""
    name = "rule" if axis == "model.mode.type" else _word(axis.rsplit(".", 1)[-1])
    return f"{name}={_word(value)}"


def _require_sweepable(changes: Changes) -> None:
    for key in changes:
        for fixed in _NOT_SWEPT:
            if _overlap(key, fixed):
                raise ValueError(f"{key} cannot be swept, because a point's folder follows from its name")


def _point(changes: Changes, place: tuple[str, ...], axis: str) -> Point:
    _require_sweepable(changes)
    return Point(changes, {key: ("sweep", *place, *(() if key == axis else (key,))) for key in changes})


def _shared(axes: Mapping[str, list[_Case]]) -> dict[str, str]:
    """Problems by axis: keys that two axes set, one of which would silently win."""
    keys = {axis: {key for case in cases for key in case.point.changes} for axis, cases in axes.items()}
    return {
        axis: f"it sets {mine}, but the axis {other} sets {theirs}; remove one of the two"
        for other, axis in itertools.combinations(axes, 2)
        for mine in sorted(keys[axis])
        for theirs in sorted(keys[other])
        if _overlap(mine, theirs)
    }


def _overlap(one: str, other: str) -> bool:
    """Whether the key paths are equal, or one is a section around the other."""
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


def _word(value: Any) -> str:
    """Value as part of a folder's name."""
    return re.sub(r"[^\w.+=-]+", "_", str(value)).strip("_") or "empty"


def changed(tree: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Copy of `tree` with the values at dotted key paths replaced. It shares with `tree` what does not change.

    Raises:
        SectionError: a path runs through a plain value.
    """
    result = dict(tree)
    for key, value in changes.items():
        result = _with(result, key, value)
    return result


def _with(tree: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    *parents, last = key.split(".")
    if len(parents) > _DEEPEST:
        raise SectionError({"": f"a key path has at most {_DEEPEST} words before the last, not {len(parents):,}"})
    sections = [tree]
    for number, parent in enumerate(parents, 1):
        below = sections[-1].get(parent)
        if not isinstance(below, Mapping | None):
            raise SectionError({".".join(parents[:number]): f"is a value, not a section that could hold {key}"})
        sections.append(below or {})  # the section may be empty or missing
    result = {**sections.pop(), last: value}
    for section, name in zip(reversed(sections), reversed(parents), strict=True):
        result = {**section, name: result}
    return result


def with_value(tree: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    """Copy of `tree` with the value at a dotted key path replaced.

    Below `sweep` the key path of an axis counts as one key, as in sweep.experiment.seed=[0, 1].

    Raises:
        SectionError: the path runs through a plain value.
    """
    section, _, axis = key.partition(".")
    if section == "sweep" and isinstance(tree.get("sweep") or {}, dict):
        axes = dict(tree.get("sweep") or {})
        if isinstance(value, list) or axis in axes:
            return {**tree, "sweep": {**axes, axis: value}}
    return changed(tree, {key: value})


def overridden(sweep: Any, key: str, value: Any) -> Any:
    """Copy of the sweep after an override sets `key` for all points.

    An axis over `key` is removed. If it has named cases, the case named `value` stays, with everything it sets.
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
