"""The reference has every public name, each with an example in its docstring, and every example does what it says."""

import doctest
import importlib
import importlib.util
import inspect
import re
import types
import warnings
from pathlib import Path

import matplotlib as mpl
import pages
import pytest
import registries
import torch
from pages import DOCS
from torch import nn

import biotorch

REFERENCE = DOCS / "api"
#: Modules whose names are public, and whose pages the reference has under their last name.
FACES = ["biotorch"] + [
    f"biotorch.{name}"
    for name in (
        "rules", "layers", "metrics", "models", "data", "training", "experiment", "results", "report", "plots",
        "robustness", "testing", "errors",
    )
]  # fmt: skip

#: Examples that take seconds, because they start processes, compile, or train a ResNet.
SLOW = {"check_compiling", "check_processes", "check_rule", "check_zoo"}


def public_names(face):
    module = importlib.import_module(face)
    if face == "biotorch.errors":
        return [name for name, kind in vars(module).items() if inspect.isclass(kind) and is_exception(kind)]
    return list(module.__all__)


def is_exception(thing):
    return inspect.isclass(thing) and issubclass(thing, BaseException) and thing.__module__.startswith("biotorch")


def resolved(path):
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def page_of(face):
    return (REFERENCE / f"{face.rpartition('.')[2]}.md").read_text()


#: Every public thing once, by the first of its paths.
THINGS = {}
for _face in FACES:
    for _name in public_names(_face):
        _thing = resolved(f"{_face}.{_name}")
        if not isinstance(_thing, types.ModuleType) and not any(_thing is known for known in THINGS.values()):
            THINGS[f"{_face}.{_name}"] = _thing

DOCUMENTED = {
    path: resolved(path) for face in FACES for path in re.findall(r"^::: (\S+)$", page_of(face), re.MULTILINE)
}


def is_described(thing):
    """Whether a thing has a docstring of its own, as constants and names of types have not."""
    return inspect.isclass(thing) or inspect.isfunction(thing)


def example(path):
    known = {"biotorch": biotorch, "torch": torch, "nn": nn, "Path": Path}
    return doctest.DocTestFinder(recurse=False).find(THINGS[path], path, module=False, globs=known)[0]


EXAMPLES = [path for path, thing in THINGS.items() if is_described(thing) and example(path).examples]


def test_every_public_name_is_in_the_reference_once():
    whole = [thing for thing in DOCUMENTED.values() if isinstance(thing, types.ModuleType)]  # with all of its names
    missing = []
    for path, thing in THINGS.items():
        face, _, name = path.rpartition(".")
        if any(thing is known for known in DOCUMENTED.values()) or importlib.import_module(face) in whole:
            continue
        described = not is_described(thing) and f"`{name}`" in page_of(face)
        if not described:
            missing.append(path)
    assert not missing
    things = list(DOCUMENTED.values())
    assert [path for path, thing in DOCUMENTED.items() if sum(thing is other for other in things) > 1] == []
    known = [*THINGS.values(), *map(importlib.import_module, FACES)]
    assert [path for path, thing in DOCUMENTED.items() if not any(thing is each for each in known)] == []


def test_every_public_name_has_an_example():
    """In its docstring, or in a block of a page of the reference: exceptions, and pictures of a whole study."""
    code = "".join(block.text for page in sorted(REFERENCE.glob("*.md")) for block in pages.blocks(page))
    bare = []
    for path, thing in THINGS.items():
        if is_exception(thing):
            shown = re.search(rf"\b(provoke\(|except |is ){path.rpartition('.')[2]}\b", code)
        else:
            shown = path in EXAMPLES or not is_described(thing) or f"{path}(" in code
        if not shown:
            bare.append(path)
    assert not bare


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a reader of the reference, with the file that its page of experiments shows."""
    path = tmp_path_factory.mktemp("reader")
    for name, text in pages.files_of(REFERENCE / "experiment.md").items():
        (path / name).write_text(text)
    return path


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=[pytest.mark.slow] if path.rpartition(".")[2] in SLOW else []) for path in EXAMPLES],
)
def test_an_example_prints_what_it_says(path, folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setitem(mpl.rcParams, "backend", "agg")
    told = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    with registries.as_before(folder), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        runner.run(example(path), out=told.append)
    assert not runner.failures, "".join(told)
