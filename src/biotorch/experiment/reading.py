"""From a YAML file to a checked configuration; every problem is told with its line."""

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

#: A key path; the place in a file, or the override, where it was set.
_Location = tuple[str, ...]
_Places = dict[_Location, str]

_NO_CHANGE = sweep.Point({}, {})


@dataclasses.dataclass(frozen=True)
class Study:
    """The points of a configuration by name, each checked; without a sweep, one point named "".

    Attributes:
        folder: below which each point has its own.
        points: their configurations.
        cases: what each point is on every axis of the sweep: a value, or the name of a case.
    """

    folder: Path
    points: dict[str, Config]
    cases: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)

    @property
    def config(self) -> Config:
        """The first point."""
        return next(iter(self.points.values()))


def read(path: Path | str, overrides: Sequence[str] = ()) -> Study:
    """The study in a YAML file, with `key.path=value` overrides (values in YAML, too).

    An override of a key that the sweep varies takes it out of the sweep.

    Raises:
        ConfigError: no such file, no valid YAML, keys that stand twice, unknown keys, wrong values and
            impossible combinations: all of them, listed.
    """
    path = Path(path)
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; a run's resolved configuration is its {path / 'config.yaml'}")
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
    """The study in a tree of plain values, with `changes` at every point, whatever the sweep says.

    What the sweep sets need not be set outside of it. An entry of its `when` has to hold at some point, unless
    overrides have `narrowed` the sweep.

    Raises:
        ConfigError: listing `problems` and all that are found at any point.
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
        found += [_line(entry.place, "it holds at no point of the sweep", places) for entry in unused]
    if found:
        listed = list(dict.fromkeys(found))
        count = f"{len(listed)} problem{'s' if len(listed) > 1 else ''}"
        raise ConfigError(f"{source}: {count}" + "".join(f"\n  {line}" for line in listed))
    experiment = next(iter(configs.values())).experiment
    return Study(experiment.output_dir / experiment.name, configs, {name: point.cases for name, point in grid.items()})


def _import(tree: Mapping[str, Any], found: list[str], places: _Places) -> None:
    """Import what the file names, before the names of its rules are looked up; wrong types are told later."""
    names = tree.get("imports")
    if isinstance(names, list) and all(isinstance(name, str) for name in names):
        try:
            import_all(names)
        except OwnModuleError as error:
            found.append(_line(("imports",), str(error).removeprefix("imports: "), places))


# YAML ------------------------------------------------------------------------------------------


def _parse(text: str, source: str) -> tuple[Any, _Places, list[str]]:
    """The tree of a document, the place of each key, and the keys that YAML would lose without a word."""
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
        raise ConfigError(f"{source}:{node.start_mark.line + 1}: an alias holds itself")
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
            problems.append(f"{source}:{line}: {'.'.join((*location, str(key.value)))}: a key is a word")
            continue
        if key.value in seen:
            path = ".".join((*location, key.value))
            problems.append(f"{source}:{line}: {path}: stands here again, first in line {seen[key.value]}")
        seen[key.value] = line
        places.setdefault((*location, key.value), f"{source}:{line}")
        _walk(value, (*location, key.value), source, places, problems, above)


def parse_override(override: str) -> tuple[str, Any]:
    """Key path and value of `key.path=value`, the value read as YAML. Raises ConfigError where it is none."""
    key, separator, text = override.partition("=")
    if not separator or not all(key.split(".")):
        raise ConfigError(f"{override!r} is no override: write key.path=value")
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
            continue  # the other half of a union, and what _walk has told with its line
        else:
            yield _line(location, _message(problem, location), places, point)


def _message(problem: Any, location: _Location) -> str:
    if problem["type"] == "extra_forbidden":
        return f"unknown key.{nearest(location[-1], _keys_at(location[:-1]))}"
    if problem["type"] == "missing":
        return "missing"
    if problem["type"] in ("model_type", "dict_type"):
        return f"a section with keys of its own is needed, not {reprlib.repr(problem['input'])}"
    message = str(problem["msg"]).removeprefix("Value error, ")
    return message if problem["type"] == "value_error" else f"{message}, got {reprlib.repr(problem['input'])}"


def _line(location: _Location, message: str, places: _Places, point: sweep.Point = _NO_CHANGE) -> str:
    """`file:line: key.path: message`, at the nearest place that is known."""
    key = ".".join(location)
    candidates = [location[:length] for length in range(len(location), 0, -1)]
    for swept, where in point.places.items():
        if f"{key}.".startswith(f"{swept}."):
            message = f"{message} (at the point of the sweep where {swept} is {point.changes[swept]!r})"
            candidates = [where[:length] for length in range(len(where), 0, -1)]
    place = next((places[known] for known in candidates if known in places), None)
    if place is None:  # a section that an override or the sweep has made
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
