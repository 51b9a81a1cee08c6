"""Reading of a YAML file into checked configurations; one error lists all problems, each with its line."""

from __future__ import annotations

import dataclasses
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from biotorch._names import nearest
from biotorch.errors import ConfigError, OwnModuleError, SectionError
from biotorch.experiment import sweep
from biotorch.experiment.config import Config
from biotorch.experiment.documents import Loader
from biotorch.experiment.importing import import_all

#: A key path, split at its dots.
_Location = tuple[str, ...]
#: For each key path, the file and line, or the override, that has set it.
_Places = dict[_Location, str]

_NO_CHANGE = sweep.Point({}, {})


@dataclasses.dataclass(frozen=True)
class Study:
    """The points of a configuration file, by name. Without a sweep there is one point, named "".

    Attributes:
        folder: folder of the study, in which each point has a folder of its own.
        points: checked configuration of each point.
        cases: for each point, its value or the name of its case on every axis of the sweep.
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

    If the sweep varies an overridden key, the override takes the key out of the sweep.

    Raises:
        ConfigError: there is no such file, or it is not valid YAML; or, all in one list: repeated keys, unknown keys,
            wrong values and impossible combinations.
    """
    path = Path(path)
    if path.is_dir():
        raise ConfigError(
            f"{path} is a folder, not a file; in the folder of a run, the configuration is {path / 'config.yaml'}"
        )
    if not path.is_file():
        raise ConfigError(f"no configuration file {path}{nearest(path.name, _yaml_files(path.parent))}")
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    tree, places, problems = _parse(text, str(path))
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} holds no configuration: expected sections such as experiment, data, model")
    changes: dict[str, Any] = {}
    for override in overrides:
        _override(tree, override, changes, places, problems)
    return validate(tree, str(path), changes, places, problems, narrowed=bool(overrides))


def validate(
    tree: Mapping[str, Any],
    source: str,
    changes: Mapping[str, Any] | None = None,
    places: _Places | None = None,
    problems: Sequence[str] = (),
    narrowed: bool = False,
) -> Study:
    """Make the study from a tree of plain values, checking every point of its sweep.

    Keys that the sweep sets may be missing outside of it.

    Args:
        tree: the configuration.
        source: name of the configuration in messages.
        changes: values by key path, set at every point even if the sweep sets other ones.
        places: for each key path, the place that has set it, for messages.
        problems: problems that are known already.
        narrowed: whether overrides have narrowed the sweep. If not, each entry of its `when` must hold at some point.

    Raises:
        ConfigError: lists `problems` and those found at any point.
    """
    places, found = places or {}, list(problems)
    _import(tree, found, places)
    grid: dict[str, sweep.Point] = {"": _NO_CHANGE}
    entries: list[sweep.Refinement] = []
    try:
        axes = {} if tree.get("sweep") is None else tree["sweep"]
        grid, entries = sweep.points(axes), sweep.refinements(axes)
    except SectionError as error:
        for key, text in error.problems.items():
            parts = key.split(".") if key.startswith("when.") else [key] if key else []
            found.append(_line(("sweep", *parts), text, places))
    configs, unused = {}, list(entries)
    for name, point in grid.items():
        try:
            whole = sweep.changed(sweep.changed(tree, point.changes), changes or {})
            holding = [entry for entry in entries if entry.holds(whole, point)]
            unused = [entry for entry in unused if entry not in holding]
            for entry in holding:
                point = sweep.refined(point, entry)  # noqa: PLW2901
                whole = sweep.changed(whole, {**entry.changes, **(changes or {})})
            configs[name] = Config.model_validate({**whole, "sweep": {}})
        except SectionError as error:
            found += [_line(tuple(key.split(".")), text, places) for key, text in error.problems.items()]
        except ValidationError as error:
            found += _lines(error, places, point)
    if not narrowed:
        found += [_line(entry.place, "no point of the sweep meets these conditions", places) for entry in unused]
    if found:
        listed = list(dict.fromkeys(found))
        count = f"{len(listed)} problem{'s' if len(listed) > 1 else ''}"
        raise ConfigError(f"{source}: {count}" + "".join(f"\n  {line}" for line in listed))
    experiment = next(iter(configs.values())).experiment
    return Study(experiment.output_dir / experiment.name, configs, {name: point.cases for name, point in grid.items()})


def _import(tree: Mapping[str, Any], found: list[str], places: _Places) -> None:
    """Import the modules of `imports`, which may register rules. Values of a wrong type are reported later."""
    names = tree.get("imports")
    if isinstance(names, list) and all(isinstance(name, str) for name in names):
        try:
            import_all(names)
        except OwnModuleError as error:
            found.append(_line(("imports",), str(error).removeprefix("imports: "), places))


# YAML ------------------------------------------------------------------------------------------


def _parse(text: str, source: str) -> tuple[Any, _Places, list[str]]:
    """Parse a document into its tree, the place of each key, and problems with keys that YAML drops silently."""
    places: _Places = {}
    problems: list[str] = []
    try:
        loader = Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None, {}, []
        _walk(node, (), source, places, problems, frozenset())
        tree = loader.construct_document(node)
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{_place(error, text, source)} not valid YAML: {' '.join(str(error).split())}") from error
    return tree, places, problems


def _place(error: Exception, text: str, source: str) -> str:
    if source.startswith("override"):
        return f"{source} is"
    if isinstance(error, yaml.reader.ReaderError):
        return f"{source}:{text[: error.position].count(chr(10)) + 1}:"
    mark = getattr(error, "problem_mark", None)
    return f"{source}:{mark.line + 1 if mark else 1}:"


def _walk(
    node: yaml.Node, location: _Location, source: str, places: _Places, problems: list[str], above: frozenset[int]
) -> None:
    if id(node) in above:
        raise ConfigError(f"{source}:{node.start_mark.line + 1}: an alias contains itself")
    above |= {id(node)}
    if isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            places.setdefault((*location, str(number)), f"{source}:{value.start_mark.line + 1}")
            _walk(value, (*location, str(number)), source, places, problems, above)
    if not isinstance(node, yaml.MappingNode):
        return
    seen: dict[str, int] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if key.tag == "tag:yaml.org,2002:merge":
            _walk(value, location, source, places, problems, above)
            continue
        word = isinstance(key, yaml.ScalarNode) and (key.tag.endswith(":str") or location[:1] == ("sweep",))
        if not word:
            problems.append(f"{source}:{line}: {'.'.join((*location, str(key.value)))}: a key must be a word")
            continue
        if key.value in seen:
            path = ".".join((*location, key.value))
            problems.append(f"{source}:{line}: {path}: this key is already set in line {seen[key.value]}")
        seen[key.value] = line
        places.setdefault((*location, key.value), f"{source}:{line}")
        _walk(value, (*location, key.value), source, places, problems, above)


def parse_override(override: str) -> tuple[str, Any]:
    """Split `key.path=value` into key path and value, which is read as YAML. Raises ConfigError if it is malformed."""
    key, separator, text = override.partition("=")
    if not separator or not all(key.split(".")):
        raise ConfigError(f"{override!r} is not an override: write key.path=value")
    value, _, problems = _parse(text, f"override {override}")
    if problems:
        raise ConfigError("\n  ".join(problems))
    return key, value


def _override(
    tree: dict[str, Any], override: str, changes: dict[str, Any], places: _Places, problems: list[str]
) -> None:
    place = f"override {override}"
    try:
        key, value = parse_override(override)
        sweep.set_value(tree, key, value)
    except SectionError as error:
        problems += [f"{place}: {where} {message}" for where, message in error.problems.items()]
        return
    except ConfigError as error:
        problems.append(str(error))
        return
    location = tuple(key.split("."))
    for below in [known for known in places if known[: len(location)] == location]:
        del places[below]
    places[location] = place
    if location[0] != "sweep":
        changes[key] = value
        tree["sweep"] = sweep.overridden(tree.get("sweep"), key, value)


def _yaml_files(folder: Path) -> list[str]:
    return [path.name for path in folder.glob("*.yaml")] if folder.is_dir() else []


# Problems ----------------------------------------------------------------------------------------


def _lines(error: ValidationError, places: _Places, point: sweep.Point) -> Iterator[str]:
    for problem in error.errors():
        location = tuple(str(part) for part in problem["loc"] if part != "Augmentation")
        inner = problem.get("ctx", {}).get("error")
        if isinstance(inner, SectionError):
            for key, text in inner.problems.items():
                yield _line((*location, *key.split(".")) if key else location, text, places, point)
        elif location[-1:] == ("bool",) or "Keys should be strings" in problem["msg"]:
            continue  # the other branch of a union, or a key that _walk has reported
        else:
            yield _line(location, _message(problem, location), places, point)


def _message(problem: Any, location: _Location) -> str:
    if problem["type"] == "extra_forbidden":
        return f"unknown key.{nearest(location[-1], _keys_at(location[:-1]))}"
    if problem["type"] == "missing":
        return "missing"
    if problem["type"] in ("model_type", "dict_type"):
        return f"a section with keys is needed, not {reprlib.repr(problem['input'])}"
    message = str(problem["msg"]).removeprefix("Value error, ")
    return message if problem["type"] == "value_error" else f"{message}, got {reprlib.repr(problem['input'])}"


def _line(location: _Location, message: str, places: _Places, point: sweep.Point = _NO_CHANGE) -> str:
    """Format a problem as `file:line: key.path: message`, with the nearest known place."""
    key = ".".join(location)
    candidates = [location[:length] for length in range(len(location), 0, -1)]
    for swept, where in point.places.items():
        if f"{key}.".startswith(f"{swept}."):
            message = f"{message} (at the point of the sweep where {swept} is {point.changes[swept]!r})"
            candidates = [where[:length] for length in range(len(where), 0, -1)]
    place = next((places[known] for known in candidates if known in places), None)
    if place is None:  # an override or the sweep has made the section
        made = [known for known in places if known[: len(location)] == location]
        made += [where[:2] for swept, where in point.places.items() if f"{swept}.".startswith(f"{key}.")]
        place = next((places[known] for known in [*made, *(known[:1] for known in made)] if known in places), None)
    return ": ".join(part for part in (place, key or "(top)", message) if part)


def _keys_at(location: Sequence[str]) -> list[str]:
    section: Any = Config
    for part in location:
        field = section.model_fields.get(part)
        kinds = [] if field is None else [field.annotation, *getattr(field.annotation, "__args__", ())]
        section = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
        if section is None:
            return []
    return list(section.model_fields)
