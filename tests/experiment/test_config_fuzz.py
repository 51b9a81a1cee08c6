"""Mutated configurations are refused with a ConfigError that names a place, or every key of them takes effect."""

import copy
import functools
import math
import random
import warnings
from pathlib import Path

import pytest
import yaml
from config_cases import CONFIGS, FILES, flat

from biotorch.experiment import ConfigError, read
from biotorch.experiment.reading import parse_override
from biotorch.experiment.reading import validate as validate_tree

SOURCES = [*CONFIGS, *sorted(FILES.glob("*.yaml"))]
MUTATIONS = 120

JUNK = [
    None, True, False, 0, 1, -1, 2.5, 1e300, -1e-300, math.nan, math.inf, 10**30, "", " ", "x", "é\u202e日本", "a\nb",
    [], [[]], [None], [1, "a"], {}, {"x": {}}, {"type": "SGD"}, {"x": [{"y": None}]}, [True], ["fa"], "2020-01-01",
    "cross_entropy", -0.0, "1e-3", "null",
]  # fmt: skip
OVERRIDES = [
    "", "=", "x", "a=b", "=1", "experiment", "experiment=", "experiment.name", "experiment.name=", "experiment..name=1",
    ".=1", "training.optimizer.lr=abc", "training.optimizer.lr=[", "training.optimizer.lr=5", "data=[1]", "sweep=3",
    "sweep={a: 1}", "sweep={experiment.seed: [1, 2]}", "sweep={a: {b: {experiment.seed: 3}}}", "sweep.x.y=1",
    "model.mode={type: usf}", "model.mode.type=frsf", "training=null", "experiment.name.x=1", "logging.wandb=ä\u2028b",
    "training.optimizer={type: Adam, lr: 3}", "training.optimizer.momentum=0.5", "experiment.name=\x00",
    "data.dataset=mnist", "training.metrics.layer_alignment=true", "experiment.seed=4", "infrastructure={threads: 2}",
    "infrastructure.gpus=[1, 2]", "model={}", "training.lr_scheduler=null", "training.lr_scheduler.type=StepLR",
    "evaluation=maybe", "evaluation=false",
]  # fmt: skip
#: What may stand behind a line, between two lines, and in the place of a character.
BEHIND = [" é", ":", " :", " {", "]", " *a", " &a", " !!int", " |", " #", "'", "\x00", "\x07", "\ufeff", "\u2028"]
BETWEEN = ["<<: 3", "? [a]", "- x", "1: 2", "~: 3", "---", "...", "%TAG", "x: y", "<<: {z: 1}"]
WITHIN = "\t\n:{}[]#&*!|>'\"%@`é☃0-. "


def sections(tree, path=()):
    """All mappings of a tree with something in them, by path."""
    found = [(path, tree)] if isinstance(tree, dict) and tree else []
    for name, below in tree.items() if isinstance(tree, dict) else ():
        found += sections(below, (*path, name))
    return found


def typo(word, draw):
    at = draw.randrange(max(len(str(word)), 1))
    word = str(word)
    return draw.choice(
        [
            word[:at] + word[at + 1 :],
            word[:at] + draw.choice("qz_ é.") + word[at:],
            word.upper(),
            word[::-1],
            word + "s",
        ]
    )


def mutate_tree(tree, draw):
    if not tree:
        return
    _, section = draw.choice(sections(tree))
    key = draw.choice(list(section))
    kind = draw.randrange(6)
    if kind == 0:
        section[typo(key, draw)] = section.pop(key)
    elif kind == 1:
        draw.choice(sections(tree))[1][key] = copy.deepcopy(section[key])
    elif kind == 2:
        del section[key]
    elif kind == 3:
        section[key] = [section[key]]
    elif kind == 4 and isinstance(section[key], str):
        section[key] = typo(section[key], draw)
    else:
        section[key] = copy.deepcopy(draw.choice(JUNK))


def mutate_text(text, draw):
    lines = text.splitlines()
    at = draw.randrange(len(lines))
    kind = draw.randrange(9)
    if kind == 0:
        lines.insert(draw.randrange(len(lines)), lines[at])
    elif kind == 1:
        lines[at] = "\t" + lines[at]
    elif kind == 2:
        return text[: draw.randrange(len(text))]
    elif kind == 3:
        del lines[at]
    elif kind == 4:
        lines[at] = " " * draw.randrange(1, 4) + lines[at]
    elif kind == 5:
        lines[at] = lines[at].lstrip()
    elif kind == 6:
        lines[at] += draw.choice(BEHIND)
    elif kind == 7:
        lines.insert(at, draw.choice(BETWEEN))
    else:
        spot = draw.randrange(len(text))
        return text[:spot] + draw.choice(WITHIN) + text[spot + 1 :]
    return "\n".join(lines)


@functools.cache
def source(path):
    return path.read_text()


def mutated(draw):
    """Text of a configuration and overrides, of which something is wrong."""
    text = source(draw.choice(SOURCES))
    overrides = []
    for _ in range(draw.randrange(1, 3)):
        kind = draw.random()
        if kind < 0.55:
            tree = yaml.safe_load(text) if readable(text) else {"experiment": text}
            for _ in range(draw.randrange(1, 3)):
                mutate_tree(tree, draw)
            text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=draw.random() < 0.5)
        elif kind < 0.8:
            text = mutate_text(text, draw) if text.strip() else text
        else:
            overrides.append(draw.choice(OVERRIDES))
    return text, overrides


def readable(text):
    try:
        return isinstance(yaml.safe_load(text), dict) and bool(yaml.safe_load(text))
    except (yaml.YAMLError, ValueError, TypeError):
        return False


# What must hold ----------------------------------------------------------------------------------


def same(given, found):
    """Whether `found` in the result is what a document says, though a path or a number may be spelt otherwise."""
    if isinstance(given, list | tuple) and isinstance(found, list | tuple):
        return len(given) == len(found) and all(map(same, given, found))
    if given is True and found == "true":  # the gradient of that name, which YAML reads as a switch
        return True
    if isinstance(given, bool) or isinstance(found, bool):
        return given is found
    if isinstance(given, int | float) and isinstance(found, int | float):
        return given == found or float(given) == found
    if isinstance(given, str) and isinstance(found, int | float):
        above, _, below = given.partition("/")  # 8/255; or 1e-3, which plain PyYAML reads as a string
        return float(above) / float(below or 1) == found
    return given == found or str(Path(given)) == found


ALIAS = {("training", "metrics", "layer_alignment"): ("training", "metrics", "weight_alignment")}
IGNORED = ("training", "optimizer", "momentum")  # by Adam, with a warning


def related(one, other):
    return one[: len(other)] == other or other[: len(one)] == one


def require_part_of(leaves, config, excused, told):
    """Every leaf is in the configuration, unless one of the `excused` key paths is about it too."""
    found = flat(config.model_dump(mode="json"))
    for spelt, value in leaves.items():
        path = ALIAS.get(spelt, spelt)
        if any(related(path, other) for other in excused) or (path == IGNORED and told):
            continue
        if value is None or value == {}:
            assert any(related(path, other) for other in found), path
        else:
            assert path in found, f"{'.'.join(path)} is ignored"
            assert same(value, found[path]), f"{'.'.join(path)}: {value!r} became {found[path]!r}"


def swept(axes):
    """What each point of a sweep changes: the grid, stated once more."""
    grid = [{}]
    for axis, values in (axes or {}).items():
        if axis == "when":
            continue
        cases = [{axis: value} for value in values] if isinstance(values, list) else [
            ({axis: name} if "." in axis else {}) | (changes or {}) for name, changes in values.items()
        ]  # fmt: skip
        grid = [{**point, **case} for point in grid for case in cases]
    return grid


def refined(changes, entries, tree, given):
    """What a point changes with the entries of `when` that hold there, stated once more."""
    for entry in entries or []:
        known = {".".join(path): value for path, value in flat(tree).items()} | changes | dict(given)
        wanted = {key: value if isinstance(value, list) else [value] for key, value in entry.items() if key != "set"}
        if all(known.get(key) in values for key, values in wanted.items()):
            changes = changes | entry["set"]
    return changes


def _cases(values):
    """What the cases of an axis that an override took out set: one of them may be what the override chose."""
    return [changes for changes in values.values() if isinstance(changes, dict)] if isinstance(values, dict) else []


def require_nothing_ignored(text, overrides, study, told):
    tree = yaml.safe_load(text)
    axes = tree.pop("sweep", {})
    given = [parse_override(override) for override in overrides]
    paths = [tuple(key.split(".")) for key, _ in given]
    if not any(path[0] == "sweep" for path in paths):
        assert isinstance(axes, dict | None)
        taken_out = {axis for axis in axes or {} for path in paths if tuple(axis.split("."))[: len(path)] == path}
        kept = {axis: values for axis, values in (axes or {}).items() if axis not in taken_out}
        grid = swept(kept)
        assert len(study.points) == len(grid)
        chosen = {key for axis in taken_out for case in _cases(axes[axis]) for key in case}
        paths_of_cases = [tuple(str(key).split(".")) for key in chosen]
        for point, config in zip(grid, study.points.values(), strict=True):
            changes = refined(point, kept.get("when"), tree, given)
            for key, value in changes.items():
                require_part_of(flat(value, tuple(key.split("."))), config, paths, told)
            changed = [tuple(key.split(".")) for key in changes]
            require_part_of(flat(tree), config, [*paths, *changed, *paths_of_cases], told)
    for number, ((key, value), path) in enumerate(zip(given, paths, strict=True)):
        if path[0] != "sweep" and not any(other[0] == "sweep" for other in paths):
            for config in study.points.values():
                require_part_of(flat(value, tuple(key.split("."))), config, paths[number + 1 :], told)


def require_repeatable(study):
    """Each point, written down and read again, is the same configuration."""
    for config in list(study.points.values())[:2]:
        again = validate_tree(yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json"))), "resolved")
        assert again.config == config


def require_place(error, path, overrides):
    first, *problems = str(error).replace(str(path), "FILE").split("\n  ")
    assert "FILE" in first or any(f"override {override}" in first for override in overrides), first
    if first.startswith("FILE: "):
        for problem in problems:
            somewhere = problem.startswith(("FILE:", "override ", "'")) or "missing" in problem
            assert somewhere or "is not an override" in problem or problem.startswith((" ", "in ")), (
                f"no place: {problem}"
            )


def check(text, overrides, path):
    path.write_text(text)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            study = read(path, overrides)
        except ConfigError as error:
            require_place(error, path, overrides)
            return
        require_repeatable(study)
    momentum = any("takes no momentum" in str(warning.message) for warning in told)
    require_nothing_ignored(text, overrides, study, momentum)


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (2, 3, 4))])
def test_no_mutation_gives_a_traceback_or_a_silently_ignored_key(tmp_path, seed):
    draw = random.Random(seed)
    failures = []
    for _ in range(MUTATIONS):
        text, overrides = mutated(draw)
        try:
            check(text, overrides, tmp_path / "mutated.yaml")
        except Exception as error:  # noqa: BLE001 - whatever it is, it is a defect; all of them are listed
            failures.append(f"{type(error).__name__}: {str(error)[:300]} with {overrides}\n{text[:1500]}")
    assert not failures, f"{len(failures)} of {MUTATIONS}:\n" + "\n---\n".join(failures[:5])


def test_most_mutations_are_refused_and_some_are_not(tmp_path):
    draw, accepted = random.Random(0), 0
    for _ in range(100):
        text, overrides = mutated(draw)
        (tmp_path / "mutated.yaml").write_text(text)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                read(tmp_path / "mutated.yaml", overrides)
            except ConfigError:
                continue
            except Exception:  # noqa: BLE001 - the test above tells
                continue
        accepted += 1
    assert 5 < accepted < 60
