"""Reading of a YAML file into checked configurations; one error lists all problems, each with its line."""

from __future__ import annotations

import dataclasses
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from biotorch._names import nearest
from biotorch._sections import Checker, subsection
from biotorch.errors import ConfigError, OwnModuleError, SectionError, shortened
from biotorch.experiment import documents, shipped, sweep
from biotorch.experiment.config import Config
from biotorch.experiment.documents import Location, Places
from biotorch.experiment.importing import check_name, import_all
from biotorch.experiment.model import with_own_names
from biotorch.experiment.planning import require_arguments

_NO_CHANGE = sweep.Point({}, {})

#: Most problems that are listed, and most points with problems after which the others are not checked.
_LISTED = 30
#: Most characters of a problem.
_LONGEST = 1000


@dataclasses.dataclass(frozen=True)
class Study:
    """The points of a configuration file, by name. Without a sweep there is one point, named "".

    Attributes:
        folder: folder of the study, in which each point has a folder of its own.
        points: checked configuration of each point.
        cases: for each point, its value or the name of its case on every axis of the sweep.

    Examples:
        >>> study = biotorch.experiment.read("study.yaml")
        >>> list(study.points)[0], str(study.folder)
        ('rule=backpropagation,seed=0', 'runs/example')
    """

    folder: Path
    points: dict[str, Config]
    cases: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)

    @property
    def config(self) -> Config:
        """Configuration of the first point."""
        return next(iter(self.points.values()))


def read(path: Path | str, overrides: Sequence[str] = ()) -> Study:
    """Read the study in a YAML file, with overrides `key.path=value` whose values are YAML, too.

    `path` may be the name of one that comes with biotorch (`paper/table1`). An override of a key that the file's sweep
    varies takes it out of the sweep. Overrides of the sweep come last, and vary keys inside of overridden sections.

    Raises:
        ConfigError: there is no such file, or it is not valid YAML; or, all in one list: repeated keys, unknown keys,
            wrong values, impossible combinations, and overrides of what an override of the sweep varies.

    Examples:
        >>> list(biotorch.experiment.read("study.yaml", ["experiment.seed=3"]).points)
        ['rule=backpropagation', 'rule=fa']
    """
    path = shipped.find(Path(path))
    try:
        text = path.read_text()
    except IsADirectoryError as error:
        raise ConfigError(
            f"{path} is a folder, not a file; in the folder of a run, the configuration is {path / 'config.yaml'}"
        ) from error
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ConfigError(shipped.missing(path)) from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{shortened(str(path))} cannot be read: {reason}") from error
    tree, places, problems = documents.parse(text, str(path))
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} holds no configuration: expected sections such as experiment, data, model")
    changes: dict[str, Any] = {}
    tree = with_own_names(tree)
    for override in sorted(overrides, key=_of_the_sweep):
        tree = _override(tree, override, changes, places, problems)
    return validate(tree, str(path), changes, places, problems, narrowed=bool(overrides))


def validate(
    tree: Mapping[str, Any],
    source: str,
    changes: Mapping[str, Any] | None = None,
    places: Places | None = None,
    problems: Sequence[str] = (),
    narrowed: bool = False,
) -> Study:
    """Make the study from a tree of plain values, checking every point of its sweep.

    Keys that the sweep sets may be missing outside of it.

    Args:
        tree: the configuration.
        source: name of the configuration in messages.
        changes: values by key path, set at every point even if its case or `when` sets other ones.
        places: for each key path, the place that has set it, for messages.
        problems: problems that are known already.
        narrowed: whether overrides have narrowed the sweep. If not, each entry of its `when` must hold at some point.

    Raises:
        ConfigError: lists `problems` and those found at any point.
    """
    places, found, changes = places or {}, list(problems), changes or {}
    _import(tree, found, places)
    tree, changes = with_own_names(tree), with_own_names(changes)  # those of the modules just imported, too
    grid: dict[str, sweep.Point] = {"": _NO_CHANGE}
    entries: list[sweep.Refinement] = []
    try:
        axes = {} if tree.get("sweep") is None else tree["sweep"]
        grid, entries = sweep.points(axes), sweep.refinements(axes)
    except SectionError as error:
        for key, text in error.problems.items():
            parts = key.split(".") if key.startswith("when.") else [key] if key else []
            found.append(_line(("sweep", *parts), text, places))
    found += [_line(tuple(key.split(".")), text, places) for key, text in _contradicted(grid, changes).items()]
    configs, unused, broken, checker = {}, list(entries), 0, Checker()
    for name, point in grid.items():
        if broken == _LISTED:
            break
        try:
            varied = {
                key: point.changes[key] for key in _named_after(point) if any(_inside(key, each) for each in changes)
            }
            fixed = {**changes, **varied}
            whole = sweep.changed(sweep.changed(tree, point.changes), fixed)
            holding = [entry for entry in entries if entry.holds(whole, point)]
            unused = [entry for entry in unused if entry not in holding]
            for entry in holding:
                point = sweep.refined(point, entry)  # noqa: PLW2901
                whole = sweep.changed(whole, {**entry.changes, **fixed})
            configs[name] = checker.check(Config, {**whole, "sweep": {}})
            require_arguments(configs[name])
        except SectionError as error:
            found += [_line(tuple(key.split(".")), text, places, point) for key, text in error.problems.items()]
        except ValidationError as error:
            found += _lines(error, places, point)
        broken += name not in configs
    if not narrowed and not broken:
        found += [_line(entry.place, "no point of the sweep meets these conditions", places) for entry in unused]
    if found:
        raise ConfigError(_listed(source, list(dict.fromkeys(found))))
    experiment = next(iter(configs.values())).experiment
    return Study(experiment.output_dir / experiment.name, configs, {name: point.cases for name, point in grid.items()})


def _named_after(point: sweep.Point) -> dict[str, str]:
    """Keys after whose values a point is named, with their axes; a case with a name of its own has none."""
    places = {key: place[1:] for key, place in point.places.items()}
    return {key: axis for key, (axis, *rest) in places.items() if key == axis or rest[:1] == ["zip"]}


def _contradicted(grid: Mapping[str, sweep.Point], changes: Mapping[str, Any]) -> dict[str, str]:
    """Problems by key: overrides of values after which points are named, or of a part of them."""
    return {
        changed: f"the axis {axis} of the sweep sets {key}, too: leave one of the two out"
        for point in grid.values()
        for key, axis in _named_after(point).items()
        for changed, value in changes.items()
        if _inside(changed, key) or (changed == key and value != point.changes[key])
    }


def _inside(key: str, section: str) -> bool:
    return key.startswith(f"{section}.")


def _import(tree: Mapping[str, Any], found: list[str], places: Places) -> None:
    """Import the modules of `imports`, which may register rules. Values of a wrong type are reported later."""
    names = tree.get("imports")
    if isinstance(names, list) and all(isinstance(name, str) for name in names):
        try:
            for name in names:
                check_name(name)
        except ValueError:
            return
        try:
            import_all(names)
        except OwnModuleError as error:
            found.append(_line(("imports",), str(error).removeprefix("imports: "), places))


# Overrides ------------------------------------------------------------------------------------------


def parse_override(override: str) -> tuple[str, Any]:
    """Split `key.path=value` into key path and value, which is read as YAML. Raises ConfigError if it is malformed."""
    key, separator, text = override.partition("=")
    if not separator or not all(key.split(".")):
        raise ConfigError(f"{shortened(repr(override))} is not an override: write key.path=value")
    section, _, axis = key.partition(".")
    at = (section, axis) if section == "sweep" and axis else tuple(key.split("."))
    value, _, problems = documents.parse(text, _place_of(override), at)
    if problems:
        raise ConfigError("\n  ".join(problems))
    return key, value


def _of_the_sweep(override: str) -> bool:
    return override.partition("=")[0].partition(".")[0] == "sweep"


def _place_of(override: str) -> str:
    return f"override {shortened(override)}"


def _override(
    tree: dict[str, Any], override: str, changes: dict[str, Any], places: Places, problems: list[str]
) -> dict[str, Any]:
    """Copy of the tree with an override; its change, place and problems are added to the other arguments."""
    place = _place_of(override)
    try:
        key, value = parse_override(override)
        value = with_own_names(value, key)
        tree = sweep.with_value(tree, key, value)
    except SectionError as error:
        problems += [shortened(f"{place}: {where} {message}", _LONGEST) for where, message in error.problems.items()]
        return tree
    except ConfigError as error:
        problems.append(str(error))
        return tree
    location = tuple(key.split("."))
    for below in [known for known in places if known[: len(location)] == location]:
        del places[below]
    places[location] = place
    if location[0] != "sweep":
        changes[key] = value
        tree = {**tree, "sweep": sweep.overridden(tree.get("sweep"), key, value)}
    return tree


# Problems ----------------------------------------------------------------------------------------


def _listed(source: str, problems: Sequence[str]) -> str:
    """Message with a line for each problem, up to a number."""
    count = f"{len(problems):,} problem{'s' if len(problems) > 1 else ''}"
    more = [f"and {len(problems) - _LISTED:,} more"] if len(problems) > _LISTED else []
    return "\n  ".join([f"{source}: {count}", *problems[:_LISTED], *more])


def _lines(error: ValidationError, places: Places, point: sweep.Point) -> Iterator[str]:
    for problem in error.errors():
        location = tuple(str(part) for part in problem["loc"] if not str(part).startswith("function-"))
        inner = problem.get("ctx", {}).get("error")
        if isinstance(inner, SectionError):
            for key, text in inner.problems.items():
                yield _line((*location, *key.split(".")) if key else location, text, places, point)
        elif location[-1:] == ("bool",) or "Keys should be strings" in problem["msg"]:
            continue  # the other branch of a union, or a key that _walk has reported
        else:
            yield _line(location, _message(problem, location), places, point)


def _message(problem: Any, location: Location) -> str:
    if problem["type"] == "extra_forbidden":
        return f"unknown key.{nearest(location[-1], _keys_at(location[:-1]))}"
    if problem["type"] == "missing":
        return "missing"
    if problem["type"] in ("model_type", "dict_type"):
        return f"a section with keys is needed, not {reprlib.repr(problem['input'])}"
    message = str(problem["msg"]).removeprefix("Value error, ")
    return message if problem["type"] == "value_error" else f"{message}, got {reprlib.repr(problem['input'])}"


def _line(location: Location, message: str, places: Places, point: sweep.Point = _NO_CHANGE) -> str:
    """Format a problem as `file:line: key.path: message`, with the nearest known place."""
    key = ".".join(location)
    message = message.replace("\n", " ")
    candidates = [location[:length] for length in range(len(location), 0, -1)]
    for swept, where in point.places.items():
        inside = len(location) > 1 and f"{swept}.".startswith(f"{key}.")
        if inside or f"{key}.".startswith(f"{swept}."):
            message = f"{message} (at the point of the sweep where {swept} is {reprlib.repr(point.changes[swept])})"
            candidates = [where[:length] for length in range(len(where), 0, -1)]
    place = next((places[known] for known in candidates if known in places), None)
    if place is None:  # an override or the sweep has made the section
        made = [known for known in places if known[: len(location)] == location]
        made += [where[:2] for swept, where in point.places.items() if f"{swept}.".startswith(f"{key}.")]
        place = next((places[known] for known in [*made, *(known[:1] for known in made)] if known in places), None)
    line = (place, shortened(key) or "(top)", shortened(message, _LONGEST))
    return ": ".join(part for part in line if part)


def _keys_at(location: Sequence[str]) -> list[str]:
    section: type[BaseModel] | None = Config
    for part in location:
        section = None if section is None else subsection(section, part)
    return [] if section is None else list(section.model_fields)
