"""Reading and writing of YAML 1.2 with plain values only, and the JSON schema of configurations."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from biotorch import data, models, rules
from biotorch.errors import ConfigError, shortened
from biotorch.experiment.config import Config
from biotorch.training.losses import loss_names
from biotorch.training.optimizers import optimizer_names
from biotorch.training.schedules import scheduler_names

#: A key path, split at its dots.
Location = tuple[str, ...]
#: For each key path, the file and line, or the override, that has set it.
Places = dict[Location, str]

#: Bounds of a document: characters, values (an alias counts as all that it stands for), levels, characters of a number.
#: Configurations stay far below; without bounds a few lines of aliases would fill the memory.
_LONGEST, _MOST, _DEEPEST, _DIGITS = 4_000_000, 20_000, 50, 250

_TAG = "tag:yaml.org,2002:"
_MAP, _SEQ, _STR, _MERGE = f"{_TAG}map", f"{_TAG}seq", f"{_TAG}str", f"{_TAG}merge"


class Document(NamedTuple):
    """Values of a document, the place of each key, and problems of keys that stand twice or are no words."""

    tree: Any
    places: Places
    problems: list[str]


def parse(text: str, source: str, at: Location = ()) -> Document:
    """Read a document. Aliases become copies, and `<<` merges mappings, as in YAML 1.1.

    Args:
        text: the document.
        source: the file, or `override <text>`, for messages.
        at: the key path that the document is the value of, if it is an override.

    Raises:
        ConfigError: the text is not valid YAML, has a tag that is not in YAML 1.2's core schema, or exceeds a bound.
    """
    try:
        if len(text) > _LONGEST:
            raise yaml.YAMLError(f"more than {_LONGEST:,} characters")
        node = _Composer(text).get_single_node()
        builder = _Builder(source)
        tree = None if node is None else builder.value(node, at)
    except yaml.YAMLError as error:
        raise ConfigError(f"{_place(error, text, source)} not valid YAML: {_reason(error)}") from error
    return Document(tree, builder.places, builder.problems)


def _place(error: yaml.YAMLError, text: str, source: str) -> str:
    if source.startswith("override"):
        return f"{source} is"
    if isinstance(error, yaml.reader.ReaderError):
        return f"{source}:{text[: error.position].count(chr(10)) + 1}:"
    mark = getattr(error, "problem_mark", None)
    return f"{source}:{mark.line + 1 if mark else 1}:"


def _reason(error: yaml.YAMLError) -> str:
    """The reason in one line, without the excerpts that PyYAML adds."""
    if isinstance(error, yaml.MarkedYAMLError):
        return shortened(", ".join(part for part in (error.context, error.problem) if part))
    return shortened(str(error).partition("\n")[0])


def _wrong(node: yaml.Node, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


def stored(path: Path) -> dict[str, Any] | None:
    """Resolved configuration that a run has written, or None if the file is missing or damaged."""
    try:
        tree = parse(path.read_text(encoding="utf-8"), str(path)).tree
    except (FileNotFoundError, UnicodeDecodeError, ConfigError):
        return None
    sections = ("experiment", "data", "model", "infrastructure")
    return tree if isinstance(tree, dict) and all(isinstance(tree.get(name), dict) for name in sections) else None


# Scalars -----------------------------------------------------------------------------------------


def _whole(text: str) -> int:
    return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


def _float(text: str) -> float:
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


class _Kind(NamedTuple):
    pattern: str
    first: str  # characters that it may begin with
    read: Callable[[str], Any]


#: The plain scalars of YAML 1.2's core schema by tag. All others are strings, also 1:30, 1_000, 0b1, yes and dates.
_SCALARS = {
    f"{_TAG}null": _Kind(r"~|null|Null|NULL|", "~nN", lambda text: None),
    f"{_TAG}bool": _Kind(r"true|True|TRUE|false|False|FALSE", "tTfF", lambda text: text.lower() == "true"),
    f"{_TAG}int": _Kind(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789", _whole),
    f"{_TAG}float": _Kind(
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
        _float,
    ),
}


def _scalar(node: yaml.ScalarNode) -> Any:
    text = node.value
    if node.tag in (_STR, _MERGE):
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise _wrong(node, "half of a surrogate pair is no character")
        return text
    kind = _SCALARS.get(node.tag)
    if kind is None:
        raise _unknown_tag(node)
    if not re.fullmatch(kind.pattern, text):
        raise _wrong(node, f"{shortened(repr(text))} is no {node.tag.removeprefix(_TAG)}")
    if len(text) > _DIGITS:
        raise _wrong(node, f"a number of {len(text):,} characters; at most {_DIGITS} are read")
    return kind.read(text)


def _unknown_tag(node: yaml.Node) -> yaml.MarkedYAMLError:
    known = {_MAP, _SEQ, _STR, *_SCALARS}
    fault = "does not fit its value" if node.tag in known else "is not in YAML 1.2's core schema"
    return _wrong(node, f"the tag {shortened(node.tag.replace(_TAG, '!!'))} {fault}: write the plain value without it")


# Collections -------------------------------------------------------------------------------------


class _Composer(yaml.SafeLoader):
    """PyYAML's parser with the scalars of YAML 1.2, which ends at a bound before it takes time or memory."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own lacks the annotation, too

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._values = self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._values, self._depth = self._values + 1, self._depth + 1
        _require_bounds(self._values, self._depth, self.peek_event())  # type: ignore[no-untyped-call]
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


for _tag, _kind in _SCALARS.items():
    _Composer.add_implicit_resolver(
        _tag, re.compile(f"(?:{_kind.pattern})\\Z"), [*_kind.first, *([""] * ("~" in _kind.first))]
    )
_Composer.add_implicit_resolver(_MERGE, re.compile(r"<<\Z"), ["<"])


def _require_bounds(values: int, depth: int, where: Any) -> None:
    if values > _MOST:
        raise _wrong(where, f"more than {_MOST:,} values, with those that aliases stand for")
    if depth > _DEEPEST:
        raise _wrong(where, f"more than {_DEEPEST} levels, or an alias that contains itself")


class _Builder:
    """Makes plain values of nodes, and notes the place of each key."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.places: Places = {}
        self.problems: list[str] = []
        self._values = 0

    def value(self, node: yaml.Node, location: Location, depth: int = 1) -> Any:
        """Value of a node at a key path; nested nodes have one more `depth`."""
        self._values += 1
        _require_bounds(self._values, depth, node)
        if isinstance(node, yaml.ScalarNode):
            return _scalar(node)
        if node.tag not in (_MAP, _SEQ) or (node.tag == _MAP) != isinstance(node, yaml.MappingNode):
            raise _unknown_tag(node)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, location, depth)
        for number, item in enumerate(node.value):
            self._note((*location, str(number)), item)
        return [self.value(item, (*location, str(number)), depth + 1) for number, item in enumerate(node.value)]

    def _mapping(self, node: yaml.MappingNode, location: Location, depth: int) -> dict[Any, Any]:
        result: dict[Any, Any] = {}
        lines: dict[Any, int] = {}
        for key, value in node.value:
            if key.tag == _MERGE:
                continue
            line, name = key.start_mark.line + 1, self._key(key, location)
            if name is None:
                continue
            path = (*location, str(key.value))
            if name in lines:
                self._complain(line, path, f"this key is already set in line {lines[name]}")
            lines[name] = line
            self._note(path, key)
            result[name] = self.value(value, path, depth + 1)
        merged: dict[Any, Any] = {}
        for key, value in node.value:
            for each in self._merged(value) if key.tag == _MERGE else ():
                merged = {**self._mapping_to_merge(each, location, depth + 1), **merged}
        return {**merged, **result}

    def _mapping_to_merge(self, node: yaml.Node, location: Location, depth: int) -> dict[Any, Any]:
        if not isinstance(node, yaml.MappingNode):
            raise _wrong(node, "<< takes a mapping, or a list of mappings")
        values: dict[Any, Any] = self.value(node, location, depth)
        return values

    @staticmethod
    def _merged(node: yaml.Node) -> Iterator[yaml.Node]:
        return iter(node.value if isinstance(node, yaml.SequenceNode) else [node])

    def _key(self, node: yaml.Node, location: Location) -> Any:
        """The key that a node stands for; None, with a problem, if it is no word. Cases of a sweep may be numbers."""
        shown = "[...]" if isinstance(node, yaml.SequenceNode) else "{...}"
        if isinstance(node, yaml.ScalarNode):
            if node.tag == _STR or (len(location) == 2 and location[0] == "sweep"):
                return _scalar(node)
            shown = node.value
        self._complain(node.start_mark.line + 1, (*location, shown), "a key must be a word")
        return None

    def _note(self, location: Location, node: yaml.Node) -> None:
        override = self.source.startswith("override")
        self.places.setdefault(location, self.source if override else f"{self.source}:{node.start_mark.line + 1}")

    def _complain(self, line: int, location: Location, problem: str) -> None:
        self.problems.append(f"{self.source}:{line}: {shortened('.'.join(location))}: {problem}")


# Writing -----------------------------------------------------------------------------------------


class _Dumper(yaml.SafeDumper):
    """YAML dumper that quotes strings which readers of YAML 1.1 or 1.2 would take for something else."""


for _tag, _kind in _SCALARS.items():
    _Dumper.add_implicit_resolver(_tag, re.compile(f"(?:{_kind.pattern})\\Z"), list(_kind.first))


def dump(tree: Any) -> str:
    """YAML text of a tree of plain values; `parse` reads it back unchanged."""
    text: str = yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return text


def json_schema() -> dict[str, Any]:
    """JSON schema of configurations, with which editors complete keys and names, and mark errors.

    Names of rules, optimizers and the like are given as examples and not as the only values, because spellings may vary
    (`multistep_lr`) and users register their own rules.
    """
    schema = Config.model_json_schema()
    names = {
        ("ModeConfig", "type"): rules.available(),
        ("ModelConfig", "architecture"): models.available(),
        ("DataConfig", "dataset"): data.available(),
        ("OptimizerConfig", "type"): optimizer_names(),
        ("SchedulerConfig", "type"): scheduler_names(),
        ("LossConfig", "name"): loss_names(),
    }
    for (section, key), values in names.items():
        schema["$defs"][section]["properties"][key]["examples"] = values
    for section in (schema, *schema["$defs"].values()):
        section.pop("required", None)  # a sweep may set keys that a section omits
    precision = schema["$defs"]["InfrastructureConfig"]["properties"]["precision"]
    precision["enum"].append(32)
    precision.pop("type", None)
    metrics = schema["$defs"]["MetricsConfig"]["properties"]
    for spelling in ("layer_alignment", "weight_alignment"):  # pydantic's schema has only the first of two aliases
        metrics.setdefault(spelling, {"type": "boolean", "default": False})
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
