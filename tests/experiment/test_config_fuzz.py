"""Mutated configurations are refused with a ConfigError that names a place, or every key of them takes effect."""

import os
import random
import resource
import select
import signal
import warnings
from collections import Counter
from pathlib import Path

import pytest
import yaml
from config_cases import flat
from config_mutations import SMALL, mutated, plain
from typer.testing import CliRunner

from biotorch import rules
from biotorch.cli.app import app
from biotorch.experiment import ConfigError, read
from biotorch.experiment.reading import parse_override
from biotorch.experiment.reading import validate as validate_tree

#: Seconds after which a mutation counts as a hang, and bytes of memory that it may take.
PATIENCE, MEMORY = 60, 12 * 2**30

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
    if found in rules.available():  # in any case
        return str(given).lower() == found
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
    tree = plain(text)
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
            changed = [tuple(key.split(".")) for key in changes]
            for order, value in enumerate(changes.values(), 1):
                require_part_of(flat(value, changed[order - 1]), config, [*paths, *changed[order:]], told)
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
    assert "FILE" in first or first.startswith("override "), first
    assert all(len(line) < 3000 and line.isprintable() for line in (first, *problems)), (
        "message: a line is long or unprintable"
    )
    if first.startswith("FILE: "):
        for problem in problems:
            somewhere = problem.startswith(("FILE:", "override ", "'")) or "missing" in problem
            assert somewhere or "is not an override" in problem or problem.startswith("and "), (
                f"message: no place: {problem}"
            )


def check(text, overrides, path):
    """Read a mutated configuration; a defect is any exception. Returns the study, or None if it is refused."""
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            study = read(path, overrides)
        except ConfigError as error:
            require_place(error, path, overrides)
            return None
        require_repeatable(study)
    momentum = any("takes no momentum" in str(warning.message) for warning in told)
    require_nothing_ignored(text, overrides, study, momentum)
    return study


def dry_run(study, overrides, path):
    """Estimate a study on small data, as the command does; return whether it was one."""
    small = all(each.data.dataset == "digits" and (each.data.target_size or 8) < 64 for each in study.points.values())
    if not small or len(study.points) > 4 or any(each.model.checkpoint for each in study.points.values()):
        return False
    done = CliRunner().invoke(app, ["run", "--dry-run", str(path), *overrides])
    if done.exit_code not in (0, 2, 3):
        raise done.exception
    return True


class Hang(BaseException):
    """A mutation has taken too long."""


def hang(number, frame):
    raise Hang


def outcome(number, folder, estimated):
    """What a mutation comes to: `refused`, `accepted`, `estimated`, or a defect with its text."""
    draw = random.Random(number)
    text, overrides = mutated(draw)
    path = folder / "mutated.yaml"
    signal.alarm(PATIENCE)
    try:
        study = check(text, overrides, path)
        if study is None:
            return "refused"
        return "estimated" if draw.random() < estimated and dry_run(study, overrides, path) else "accepted"
    except AssertionError as error:
        kind, told = ("ignored key" if "message:" not in str(error) else "message"), error
    except Hang:
        kind, told = "hang", ""
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is a defect
        kind, told = "traceback", f"{type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
    return f"{kind}\t{number}: {str(told)[:300]!r} with {[each[:80] for each in overrides]}\n{text[:1200]}"


def outcomes(numbers, folder, estimated):
    """Outcomes of mutations in a process of its own, which ends if it takes too much time or memory."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.chdir(folder)
            signal.signal(signal.SIGALRM, hang)
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            for number in numbers:
                os.write(writing, outcome(number, folder, estimated).encode("utf-8", "backslashreplace") + b"\0")
        finally:
            os._exit(0)
    os.close(writing)
    found = b""
    while select.select([reading], [], [], 2 * PATIENCE)[0] and (part := os.read(reading, 1 << 16)):
        found += part
    os.close(reading)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    told = found.decode().split("\0")[:-1]
    if len(told) < len(numbers):  # a hang outside of Python, or a crash: the rest goes on without it
        number, *rest = numbers[len(told) :]
        return [*told, f"hang\t{number}", *(outcomes(rest, folder, estimated) if rest else [])]
    return told


@pytest.mark.parametrize(
    ("first", "count", "estimated"), [(400, 200, 0.15), pytest.param(1000, 10_000, 0.1, marks=pytest.mark.slow)]
)
def test_no_mutation_gives_a_traceback_an_ignored_key_or_a_hang(tmp_path, first, count, estimated):
    (tmp_path / "small.yaml").write_text(SMALL)
    assert dry_run(read(tmp_path / "small.yaml"), [], tmp_path / "small.yaml")  # imports what all children share
    told = outcomes(range(first, first + count), tmp_path, estimated)
    kinds = Counter(each.partition("\t")[0] for each in told)
    defects = [each for each in told if "\t" in each]
    print(dict(kinds))
    assert (kinds["traceback"], kinds["ignored key"], kinds["hang"], kinds["message"]) == (0, 0, 0, 0), "\n---\n".join(
        defects[:8]
    )
    assert kinds["estimated"]
    assert count / 20 < kinds["accepted"] < count * 0.6
